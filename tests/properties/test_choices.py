"""Choices that do not fit together."""

from __future__ import annotations

import math

import pytest
import torch
from support.safety import (
    GRID,
    both,
    ones,
    quadratic,
    total,
)

import odeopt
from odeopt import (
    RK4,
    Adaptive,
    BacksolveAdjoint,
    Binomial,
    ContinuousAdjoint,
    DiscreteAdjoint,
    DormandPrince,
    Euler,
    ForwardOverReverse,
    GradientFlow,
    HeavyBall,
    ModifiedEuler,
    ODEOptimizer,
    Safety,
    TimeGrid,
    TruncatedAdjoint,
)


@pytest.mark.parametrize(("keyword", "wrong", "hint"), [
    ("solver", Euler, r"instance of Solver; did you mean Euler\(\)\?"),
    ("adjoint", DiscreteAdjoint, r"instance of Adjoint; did you mean DiscreteAdjoint\(\)\?"),
    ("checkpoints", Binomial, r"of CheckpointSchedule; did you mean Binomial\(\)\?"),
    ("safety", Safety, r"instance of Safety; did you mean Safety\(\)\?"),
    ("solver", "euler", "expected an instance of Solver"),
    ("solver", DiscreteAdjoint(), "expected an instance of Solver"),
    ("adjoint", Euler(), "expected an instance of Adjoint"),
    ("checkpoints", 3, "expected an instance of CheckpointSchedule"),
])  # fmt: skip
def test_a_choice_of_another_kind_is_refused(keyword, wrong, hint):
    with pytest.raises(odeopt.InputError, match=rf"^{keyword} is .*{hint}"):
        ODEOptimizer(GradientFlow(quadratic), **{keyword: wrong})


def test_a_field_class_is_refused():
    with pytest.raises(odeopt.InputError, match=r"expected a Field instance such as GradientFlow"):
        ODEOptimizer(GradientFlow)


@pytest.mark.parametrize("make", [ContinuousAdjoint, BacksolveAdjoint])
@pytest.mark.parametrize("wrong", [Euler, DormandPrince(), "rk4"])
def test_an_adjoint_refuses_a_method_that_is_no_runge_kutta(make, wrong):
    with pytest.raises(odeopt.CompatibilityError, match="expected an explicit Runge-Kutta method"):
        make(wrong)


@pytest.mark.parametrize("make", [
    DiscreteAdjoint, lambda mode: TruncatedAdjoint(2, mode),
    lambda mode: ContinuousAdjoint(Euler(), mode), lambda mode: BacksolveAdjoint(None, mode),
], ids=["discrete", "truncated", "continuous", "backsolve"])  # fmt: skip
@pytest.mark.parametrize("wrong", [ForwardOverReverse, Euler()], ids=["class", "solver"])
def test_an_adjoint_refuses_a_differentiation_of_another_kind(make, wrong):
    with pytest.raises(odeopt.InputError, match="differentiation"):
        make(wrong)


@pytest.mark.parametrize(
    "adjoint", [DiscreteAdjoint(), TruncatedAdjoint(2)], ids=lambda a: type(a).__name__
)
def test_an_exact_adjoint_of_torchdiffeq_is_refused(adjoint):
    with pytest.raises(odeopt.CompatibilityError, match=r"cannot replay DormandPrince.*Continuous"):
        ODEOptimizer(GradientFlow(quadratic), DormandPrince(), adjoint)


def test_replaying_torchdiffeq_is_refused():
    with pytest.raises(odeopt.CompatibilityError, match="Binomial replays steps, which DormandPr"):
        ODEOptimizer(
            GradientFlow(quadratic), DormandPrince(), ContinuousAdjoint(RK4()), Binomial(3)
        )


@both
@pytest.mark.parametrize("make", [
    DiscreteAdjoint, lambda mode: ContinuousAdjoint(ModifiedEuler(), mode),
    lambda mode: BacksolveAdjoint(RK4(), mode),
], ids=["discrete", "continuous", "backsolve"])  # fmt: skip
def test_forward_over_reverse_without_a_potential_is_refused(device, run, make):
    opt = ODEOptimizer(HeavyBall(quadratic, damping=1.0), adjoint=make(ForwardOverReverse()))
    with pytest.raises(odeopt.CompatibilityError, match="needs a field with a scalar potential"):
        run(opt, total, ones(device), ones(device), GRID)


def test_an_adaptive_solve_inside_vmap_is_refused(device):
    opt = ODEOptimizer(GradientFlow(quadratic), Adaptive())
    with pytest.raises(odeopt.CompatibilityError, match=r"vmap hides.*Use tasks=True"):
        torch.func.vmap(lambda x: opt.solve(x, ones(device), GRID).params)(ones(device, 3, 2))


@both
def test_an_adaptive_solve_with_too_many_steps_is_refused(device, run):
    opt = ODEOptimizer(GradientFlow(quadratic), Adaptive(rtol=1e-10, atol=1e-12, max_steps=5))
    with pytest.raises(
        odeopt.StepLimitError, match=r"made 5 attempts and is at t = .*of 100: raise"
    ):
        run(opt, total, ones(device), ones(device), TimeGrid.uniform(100.0, 1))


@both
def test_torchdiffeq_with_a_horizon_per_task_is_refused(device, run):
    opt = ODEOptimizer(GradientFlow(quadratic), DormandPrince(), ContinuousAdjoint(RK4()))
    grid = TimeGrid.uniform(torch.tensor([1.0, 2.0], device=device), 4)
    with pytest.raises(odeopt.CompatibilityError, match=r"horizons differ. Use Adaptive"):
        run(opt, total, ones(device), ones(device), grid, tasks=True)


@pytest.mark.parametrize("keywords", [
    {"rtol": 0.0}, {"atol": -1.0}, {"rtol": math.nan}, {"atol": math.inf}, {"first_step": -1.0},
])  # fmt: skip
def test_adaptive_refuses_tolerances_that_make_no_sense(keywords):
    name = next(iter(keywords))
    with pytest.raises(odeopt.InputError, match=f"{name} is .*; expected a positive finite number"):
        Adaptive(**keywords)


def test_an_unknown_torchdiffeq_method_is_refused():
    with pytest.raises(
        odeopt.InputError, match="method is 'dopri6'; expected one of dopri8, dopri5"
    ):
        odeopt.Torchdiffeq("dopri6")
