"""No silent error: what cannot be right is refused, by `solve` and by `value_and_grad`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import odeopt
from odeopt import (
    RK4,
    Adaptive,
    BacksolveAdjoint,
    Binomial,
    ContinuousAdjoint,
    Density,
    DiscreteAdjoint,
    DormandPrince,
    Euler,
    Every,
    FirstOrderAdjoint,
    ForwardOverReverse,
    Graded,
    GradientFlow,
    HeavyBall,
    ModifiedEuler,
    ODEOptimizer,
    RegularizedFlow,
    Safety,
    Status,
    TimeGrid,
    TruncatedAdjoint,
)

GRID = TimeGrid.from_lr(0.1, steps=4)


def quadratic(params, batch, hparams=None):
    return 0.5 * (batch * params**2).sum()


def quartic(params, batch, hparams=None):
    return 0.25 * (batch * params**4).sum()


def total(params, batch, hparams=None):
    return params.sum()


def distance(params, batch, hparams=None):
    return ((params - 1.0) ** 2).sum()


def by_value_and_grad(
    opt, outer, params, batch, grid, outer_batch=None, hparams=None, tasks=False, **more
):
    outer_batch = batch if outer_batch is None else outer_batch
    call = opt.value_and_grad(outer, tasks=tasks)
    return call(params, batch, grid, outer_batch, hparams, **more).grads.params


def by_solve(opt, outer, params, batch, grid, outer_batch=None, hparams=None, tasks=False, **more):
    outer_batch = batch if outer_batch is None else outer_batch
    start = params
    if isinstance(params, torch.Tensor) and params.is_floating_point():
        start = params.clone().requires_grad_()
    sol = opt.solve(start, batch, grid, hparams=hparams, tasks=tasks, **more)
    rest = () if hparams is None else (hparams,)
    if not tasks:
        return torch.autograd.grad(outer(sol.params, outer_batch, *rest), start)[0]
    each = [outer(p, b, *rest) for p, b in zip(sol.params, outer_batch, strict=True)]
    return torch.autograd.grad(torch.stack(each).mean(), start)[0]


both = pytest.mark.parametrize("run", [by_solve, by_value_and_grad], ids=lambda f: f.__name__[3:])


def ones(device, *shape):
    return torch.ones(*(shape or (2,)), device=device)


# Captured tensors


@both
@pytest.mark.parametrize("choices", [
    {}, {"solver": Adaptive()}, {"solver": DormandPrince(), "adjoint": ContinuousAdjoint(RK4())},
    {"adjoint": FirstOrderAdjoint()}, {"checkpoints": Binomial(2)},
], ids=["default", "adaptive", "torchdiffeq", "first order", "binomial"])  # fmt: skip
def test_a_hyperparameter_captured_by_the_loss_is_refused(device, run, choices):
    mu = torch.tensor(0.5, device=device, requires_grad=True)
    opt = ODEOptimizer(GradientFlow(lambda p, b: mu * quadratic(p, b)), **choices)
    with pytest.raises(odeopt.CapturedTensorError, match="Pass it in hparams, or detach it"):
        run(opt, total, ones(device), ones(device), GRID)


@both
def test_a_captured_hyperparameter_is_refused_with_tasks(device, run):
    mu = torch.tensor(0.5, device=device, requires_grad=True)
    opt = ODEOptimizer(GradientFlow(lambda p, b: mu * quadratic(p, b)))
    with pytest.raises(odeopt.CapturedTensorError, match="the loss"):
        run(opt, total, ones(device), ones(device, 3, 2), GRID, tasks=True)


@both
def test_a_captured_additive_tensor_is_refused(device, run):
    shift = torch.zeros(2, device=device, requires_grad=True)
    opt = ODEOptimizer(lambda t, y, c, hp, b: -y + shift)
    with pytest.raises(odeopt.CapturedTensorError, match="velocity"):
        run(opt, total, ones(device), ones(device), GRID)


@both
def test_a_module_captured_by_the_loss_is_refused(device, run):
    net = torch.nn.Linear(2, 1, device=device)
    opt = ODEOptimizer(GradientFlow(lambda p, b: net(p).square().sum()))
    with pytest.raises(odeopt.CapturedTensorError, match="from_module"):
        run(opt, total, ones(device), ones(device), GRID)


@both
@pytest.mark.parametrize("make", [
    lambda mu: GradientFlow(quadratic, weight_decay=lambda hp: mu),
    lambda mu: RegularizedFlow(quadratic, strength=lambda hp: mu),
    lambda mu: HeavyBall(quadratic, damping=lambda hp: mu),
    lambda mu: RegularizedFlow(quadratic, 1.0, center=lambda hp: mu),
], ids=["weight_decay", "strength", "damping", "center"])  # fmt: skip
def test_a_selector_that_returns_a_captured_tensor_is_refused(device, run, make):
    mu = torch.tensor([0.5, 0.5], device=device, requires_grad=True)
    opt = ODEOptimizer(make(mu))
    with pytest.raises(odeopt.CapturedTensorError, match="hparams"):
        run(opt, total, ones(device), ones(device), GRID, hparams={"x": ones(device)})


def test_a_tensor_captured_by_the_outer_loss_is_refused(device):
    mu = torch.tensor(0.5, device=device, requires_grad=True)
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(lambda p, b: mu * p.sum())
    with pytest.raises(odeopt.CapturedTensorError, match=r"outer_loss .* Pass it in hparams"):
        call(ones(device), ones(device), GRID, ones(device))


def test_a_tensor_captured_by_the_outer_loss_is_refused_with_tasks(device):
    mu = torch.tensor(0.5, device=device, requires_grad=True)
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(
        lambda p, b: (p * b).sum() + mu, tasks=True
    )
    with pytest.raises(odeopt.CapturedTensorError, match="outer_loss"):
        call(ones(device), ones(device, 3, 2), GRID, ones(device, 3, 2))


def test_a_tensor_captured_by_the_outer_loss_is_refused_without_steps(device):
    mu = torch.tensor(0.5, device=device, requires_grad=True)
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(lambda p, b: mu * p.sum())
    with pytest.raises(odeopt.CapturedTensorError, match="outer_loss"):
        call(ones(device), ones(device), TimeGrid.from_lr(0.1, 0), ones(device))


@pytest.mark.parametrize(("make", "what"), [
    (lambda x: GradientFlow(quadratic, weight_decay=x), "weight_decay"),
    (lambda x: RegularizedFlow(quadratic, strength=x), "strength"),
    (lambda x: RegularizedFlow(quadratic, 1.0, weight_decay=x), "weight_decay"),
    (lambda x: HeavyBall(quadratic, damping=x), "damping"),
    (lambda x: HeavyBall(quadratic, 1.0, weight_decay=x), "weight_decay"),
])  # fmt: skip
def test_a_constructor_refuses_a_tensor_that_requires_grad(device, make, what):
    x = torch.tensor(0.5, device=device, requires_grad=True)
    with pytest.raises(odeopt.CapturedTensorError, match=rf"^{what} is a .*hparams\['{what}'\]"):
        make(x)


# What is not finite


def first_step_that_blows_up(params, lr):
    for k in range(100):
        params = params - lr * params**3
        if not bool(torch.isfinite(params).all()):
            return k
    raise AssertionError("the example does not diverge")


@both
@pytest.mark.parametrize("choices", [
    {}, {"checkpoints": Binomial(2)}, {"checkpoints": Graded(3)},
    {"adjoint": ContinuousAdjoint(ModifiedEuler())}, {"adjoint": BacksolveAdjoint()},
    {"adjoint": FirstOrderAdjoint()},
], ids=["default", "binomial", "graded", "continuous", "backsolve", "first order"])  # fmt: skip
def test_an_inner_solve_that_diverges_names_the_step(device, run, choices):
    params = 3 * ones(device)
    step = first_step_that_blows_up(params, 1.0)
    opt = ODEOptimizer(GradientFlow(quartic), **choices)
    with pytest.raises(odeopt.DivergenceError, match=rf"after step {step} \(t = {step}\).*smaller"):
        run(opt, total, params, ones(device), TimeGrid.from_lr(1.0, 20))


@both
def test_an_inner_solve_that_diverges_names_the_task(device, run):
    batch = torch.tensor([1e-3, 1.0, 1e-3], device=device)
    opt = ODEOptimizer(GradientFlow(quartic))
    with pytest.raises(
        odeopt.DivergenceError, match=r"^task 1: the state is not finite after step"
    ):
        run(opt, total, 3 * ones(device), batch, TimeGrid.from_lr(1.0, 20), tasks=True)


@both
def test_several_tasks_that_diverge_are_all_named(device, run):
    batch = torch.tensor([1.0, 1e-3, 1.0], device=device)
    opt = ODEOptimizer(GradientFlow(quartic))
    with pytest.raises(odeopt.DivergenceError, match=r"^tasks 0, 2 failed; task 0: "):
        run(opt, total, 3 * ones(device), batch, TimeGrid.from_lr(1.0, 20), tasks=True)


@both
def test_an_adaptive_solve_of_a_loss_that_is_not_finite_is_refused(device, run):
    opt = ODEOptimizer(GradientFlow(lambda p, b: (p.log() * b).sum()), solver=Adaptive())
    with pytest.raises(odeopt.OdeoptError, match=r"not finite|attempts"):
        run(opt, total, 0.01 * ones(device), ones(device), TimeGrid.uniform(1.0, 1))


@both
def test_a_torchdiffeq_solve_that_blows_up_is_refused(device, run):
    def explode(t, y, consts, hparams, batch):
        return y**3

    opt = ODEOptimizer(explode, DormandPrince(), ContinuousAdjoint(RK4()))
    with pytest.raises(odeopt.DivergenceError, match=r"dopri5 gave up|not finite"):
        run(opt, total, 3 * ones(device), ones(device), TimeGrid.uniform(1.0, 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_of_the_outer_loss_that_is_not_finite_is_refused(device, bad):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(lambda p, b: p.sum() + bad)
    with pytest.raises(odeopt.DivergenceError, match=r"the outer loss is not finite .*logarithms"):
        call(ones(device), ones(device), GRID, ones(device))


def test_a_value_that_is_not_finite_names_the_task(device):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(
        lambda p, b: p.sum() + b, tasks=True
    )
    outer_batch = torch.tensor([0.0, math.nan], device=device)
    with pytest.raises(odeopt.DivergenceError, match=r"^task 1: the outer loss is not finite"):
        call(ones(device), ones(device), GRID, outer_batch)


@both
def test_a_root_at_zero_in_the_outer_loss_is_refused(device, run):
    opt = ODEOptimizer(GradientFlow(quadratic))
    with pytest.raises(
        odeopt.DivergenceError, match=r"gradient of the outer loss is not finite.*square root"
    ):
        run(opt, lambda p, b: p.square().sum().sqrt(), 0 * ones(device), ones(device), GRID)


def test_a_root_at_zero_in_the_outer_loss_is_blamed_on_the_outer_loss(device):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(
        lambda p, b: p.square().sum().sqrt()
    )
    with pytest.raises(odeopt.DivergenceError, match="outer loss"):
        call(0 * ones(device), ones(device), GRID, ones(device))


@both
@pytest.mark.parametrize("adjoint", [
    DiscreteAdjoint(), ContinuousAdjoint(ModifiedEuler()), BacksolveAdjoint(),
], ids=lambda adjoint: type(adjoint).__name__)  # fmt: skip
def test_a_second_derivative_of_the_inner_loss_that_is_not_finite_is_refused(device, run, adjoint):
    opt = ODEOptimizer(GradientFlow(lambda p, b: (p.abs() ** 1.5).sum()), adjoint=adjoint)
    with pytest.raises(odeopt.DivergenceError, match="adjoint variable is not finite"):
        run(opt, distance, 0 * ones(device), ones(device), GRID)


@both
def test_a_backward_sweep_that_fails_names_the_task(device, run):
    opt = ODEOptimizer(lambda t, y, c, hp, b: -torch.sqrt(y * y + b))
    with pytest.raises(
        odeopt.DivergenceError, match=r"^task 1: the adjoint variable is not finite"
    ):
        run(opt, distance, 0 * ones(device), torch.tensor([1.0, 0.0], device=device), GRID,
            tasks=True)  # fmt: skip


def rooted(params, batch, hparams):
    return (1 + hparams.sqrt()) * quadratic(params, batch)


def test_a_direct_gradient_of_hparams_that_is_not_finite_is_refused(device):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(
        lambda p, b, hp: p.sum() + hp.sqrt()
    )
    with pytest.raises(odeopt.DivergenceError, match="not finite"):
        call(ones(device), ones(device), GRID, ones(device), torch.zeros((), device=device))


def test_a_path_gradient_of_hparams_that_is_not_finite_is_refused(device):
    call = ODEOptimizer(GradientFlow(rooted)).value_and_grad(total)
    with pytest.raises(odeopt.DivergenceError, match="not finite"):
        call(ones(device), ones(device), GRID, ones(device), torch.zeros((), device=device))


def test_a_path_gradient_of_hparams_that_is_not_finite_is_refused_by_solve(device):
    hparams = torch.zeros((), device=device, requires_grad=True)
    sol = ODEOptimizer(GradientFlow(rooted)).solve(
        ones(device), ones(device), GRID, hparams=hparams
    )
    with pytest.raises(odeopt.DivergenceError, match="not finite"):
        sol.params.sum().backward()


# Skipping tasks


def run_skipping(device, opt, outer, batch, outer_batch, grid, hparams=None):
    call = opt.value_and_grad(outer, tasks=True, on_failure="skip")
    return call(3 * ones(device), batch, grid, outer_batch, hparams)


@pytest.mark.parametrize("choices", [
    {}, {"checkpoints": Every(3)}, {"checkpoints": Binomial(2)}, {"checkpoints": Graded(4)},
    {"adjoint": ContinuousAdjoint(ModifiedEuler())},
    {"adjoint": ContinuousAdjoint(ModifiedEuler()), "checkpoints": Binomial(2)},
    {"adjoint": FirstOrderAdjoint()},
], ids=["default", "every", "binomial", "graded", "continuous", "continuous, binomial",
        "first order"])  # fmt: skip
def test_a_task_that_diverges_is_left_out_and_reported(device, choices):
    opt, grid = ODEOptimizer(GradientFlow(quartic), **choices), TimeGrid.from_lr(1.0, 20)
    batch = torch.tensor([1e-3, 1.0, 1e-3], device=device)
    res = run_skipping(device, opt, distance, batch, batch, grid)
    alone = opt.value_and_grad(distance)(3 * ones(device), batch[0], grid, batch[0])
    assert res.status.tolist() == [Status.OK, Status.STATE_NOT_FINITE, Status.OK]
    torch.testing.assert_close(res.value, alone.value)
    torch.testing.assert_close(res.grads.params, alone.grads.params)


def test_a_task_in_which_an_adaptive_solve_fails_is_left_out(device):
    def velocity(t, y, consts, hparams, batch):
        return torch.where(batch > 0, y**3, -y)  # a pole at t = 1 / 18

    opt, grid = ODEOptimizer(velocity, Adaptive()), TimeGrid.uniform(1.0, 1)
    batch = torch.tensor([0.0, 1.0], device=device)
    res = run_skipping(device, opt, distance, batch, batch, grid)
    alone = opt.value_and_grad(distance)(3 * ones(device), batch[0], grid, batch[0])
    assert res.status.tolist() == [Status.OK, Status.STATE_NOT_FINITE]
    torch.testing.assert_close(res.grads.params, alone.grads.params, rtol=1e-5, atol=1e-6)


def test_a_task_that_diverges_does_not_spoil_the_nodes_of_the_others(device):
    adjoint, grid = ContinuousAdjoint(ModifiedEuler()), TimeGrid.from_lr(1.0, 60)
    opt = ODEOptimizer(GradientFlow(quartic), adjoint=adjoint, checkpoints=Graded(15))
    good = torch.tensor([5e-3, 5e-3], device=device)
    bad = torch.tensor([5e-3, 1.0], device=device)
    spoilt, expected = (
        run_skipping(device, opt, distance, batch, batch, grid).grads.params
        for batch in (bad, good)
    )
    torch.testing.assert_close(spoilt, expected, rtol=1e-2, atol=0.0)


def test_a_task_whose_value_is_not_finite_is_left_out(device):
    opt = ODEOptimizer(GradientFlow(quadratic))
    outer_batch = torch.tensor([1.0, math.nan, 3.0], device=device)
    res = run_skipping(device, opt, lambda p, b: b * p.sum(), ones(device, 3), outer_batch, GRID)
    assert res.status.tolist() == [Status.OK, Status.VALUE_NOT_FINITE, Status.OK]
    torch.testing.assert_close(res.grads.params, torch.full_like(res.grads.params, 2 * 0.9**4))
    torch.testing.assert_close(res.value, res.values[[0, 2]].mean())


def test_a_task_whose_adjoint_is_not_finite_is_left_out(device):
    def outer(params, batch, hparams):
        return (batch * params.square().sum() * hparams).sqrt()

    opt = ODEOptimizer(GradientFlow(quadratic))
    hparams = torch.tensor(2.0, device=device)
    outer_batch = torch.tensor([0.0, 1.0], device=device)
    res = run_skipping(device, opt, outer, ones(device), outer_batch, GRID, hparams)
    alone = opt.value_and_grad(outer)(
        3 * ones(device), ones(device)[0], GRID, outer_batch[1], hparams
    )
    assert res.status.tolist() == [Status.OUTER_GRADIENT_NOT_FINITE, Status.OK]
    torch.testing.assert_close(res.grads.params, alone.grads.params)
    torch.testing.assert_close(res.grads.hparams, alone.grads.hparams)


def test_a_task_that_is_unstable_is_left_out(device):
    opt = ODEOptimizer(
        GradientFlow(quadratic), adjoint=ContinuousAdjoint(ModifiedEuler()), checkpoints=Every(50)
    )
    batch = torch.tensor([1.0, 100.0], device=device)
    res = run_skipping(device, opt, total, batch, batch, TimeGrid.uniform(1.0, 500))
    assert res.status.tolist() == [Status.OK, Status.UNSTABLE]
    assert bool(torch.isfinite(res.grads.params).all())


def test_all_tasks_failing_raises_even_when_skipping(device):
    opt = ODEOptimizer(GradientFlow(quartic))
    with pytest.raises(odeopt.DivergenceError, match="tasks 0, 1 failed; task 0: the state"):
        run_skipping(device, opt, total, ones(device), ones(device), TimeGrid.from_lr(1.0, 20))


def test_skipping_without_tasks_raises(device):
    call = ODEOptimizer(GradientFlow(quartic)).value_and_grad(total, on_failure="skip")
    with pytest.raises(odeopt.DivergenceError, match="the state is not finite after step"):
        call(3 * ones(device), ones(device), TimeGrid.from_lr(1.0, 20), ones(device))


def test_solve_reports_a_skipped_task(device):
    batch = torch.tensor([1e-3, 1.0], device=device)
    sol = ODEOptimizer(GradientFlow(quartic)).solve(
        3 * ones(device), batch, TimeGrid.from_lr(1.0, 20), tasks=True, on_failure="skip"
    )
    assert sol.status.tolist() == [Status.OK, Status.STATE_NOT_FINITE]


def test_a_solve_that_skipped_a_task_can_be_differentiated_for_the_others(device):
    batch = torch.tensor([1e-3, 1.0], device=device)
    grid = TimeGrid.from_lr(1.0, 20)
    params = (3 * ones(device)).requires_grad_()
    opt = ODEOptimizer(GradientFlow(quartic))
    sol = opt.solve(params, batch, grid, tasks=True, on_failure="skip")
    (found,) = torch.autograd.grad(sol.params[sol.status == Status.OK].sum(), params)
    torch.testing.assert_close(found, by_solve(opt, total, params.detach(), batch[0], grid))


@pytest.mark.parametrize("value", ["ignore", None, True])
def test_an_unknown_on_failure_is_refused(value):
    with pytest.raises(odeopt.InputError, match=r"on_failure is .*; expected 'raise' or 'skip'"):
        ODEOptimizer(GradientFlow(quadratic)).value_and_grad(total, on_failure=value)


def test_an_unknown_on_failure_is_refused_by_solve(device):
    with pytest.raises(odeopt.InputError, match="on_failure"):
        ODEOptimizer(GradientFlow(quadratic)).solve(
            ones(device), ones(device), GRID, on_failure="ignore"
        )


# Losses that are not functions of their arguments


def noisy(params, batch):
    return (torch.rand_like(batch) * params**2).sum()


def dropped(params, batch):
    return torch.nn.functional.dropout(params**2, 0.5).sum()


@both
@pytest.mark.parametrize("loss", [noisy, dropped])
@pytest.mark.parametrize("checkpoints", [Every(1), Binomial(2)], ids=["every", "binomial"])
def test_a_loss_that_draws_random_numbers_is_refused(device, run, loss, checkpoints):
    opt = ODEOptimizer(GradientFlow(loss), checkpoints=checkpoints)
    with pytest.raises(odeopt.NondeterminismError, match="drew random numbers"):
        run(opt, total, ones(device), ones(device), GRID)


@both
def test_a_loss_that_draws_random_numbers_is_refused_with_tasks(device, run):
    opt = ODEOptimizer(GradientFlow(noisy))
    with pytest.raises(odeopt.NondeterminismError, match="drew random numbers"):
        run(opt, total, ones(device), ones(device, 3, 2), GRID, tasks=True)


UNPROBED = Safety(probe=False)
"""Without the probe, which would find a counter before any step is made."""


@both
def test_a_counter_is_refused_before_any_step_is_made(device, run):
    opt = ODEOptimizer(Counter(ones(device)))
    with pytest.raises(odeopt.NondeterminismError, match="two results for the same arguments"):
        run(opt, total, ones(device), ones(device), TimeGrid.from_lr(0.1, 9))


class Counter:
    """A velocity that is another one at each call, along a direction."""

    def __init__(self, direction):
        self.direction, self.calls = direction, 0

    def __call__(self, t, y, consts, hparams, batch):
        self.calls += 1
        return self.calls * self.direction + 0 * y


@both
@pytest.mark.parametrize(
    "checkpoints", [Binomial(2), Every(3), Density(2), Graded(3)], ids=lambda c: type(c).__name__
)
def test_a_counter_that_changes_a_replayed_state_is_refused(device, run, checkpoints):
    opt = ODEOptimizer(Counter(ones(device)), checkpoints=checkpoints, safety=UNPROBED)
    with pytest.raises(odeopt.NondeterminismError, match=r"state before step \d+ is not .*pure"):
        run(opt, total, ones(device), ones(device), TimeGrid.from_lr(0.1, 9))


def test_the_earliest_step_that_differs_is_named(device):
    opt = ODEOptimizer(Counter(ones(device)), checkpoints=Binomial(1), safety=UNPROBED)
    with pytest.raises(odeopt.NondeterminismError, match="the state before step 1 is"):
        by_value_and_grad(opt, total, ones(device), ones(device), TimeGrid.from_lr(0.1, 5))


@both
def test_a_counter_is_refused_where_the_sum_of_the_state_stays_the_same(device, run):
    direction = torch.tensor([1.0, -1.0], device=device)
    opt = ODEOptimizer(Counter(direction), checkpoints=Binomial(2), safety=UNPROBED)
    with pytest.raises(odeopt.NondeterminismError, match="state before step"):
        run(opt, total, 0 * ones(device), ones(device), TimeGrid.from_lr(1.0, 9))


@both
def test_a_pure_loss_is_replayed_without_complaint(device, run):
    arguments = total, ones(device), ones(device), TimeGrid.from_lr(0.1, 9)
    kept, replayed = (
        run(ODEOptimizer(GradientFlow(quartic), checkpoints=checkpoints), *arguments)
        for checkpoints in (Every(1), Binomial(2))
    )
    assert torch.equal(kept, replayed)


@pytest.mark.parametrize("which", ["params", "batch"])
def test_inputs_changed_between_solve_and_backward_are_noticed(device, which):
    inputs = {"params": ones(device).requires_grad_(), "batch": ones(device)}
    sol = ODEOptimizer(GradientFlow(quartic)).solve(*inputs.values(), GRID)
    with torch.no_grad():
        inputs[which].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sol.params.sum().backward()


# Second derivatives


def end_value(params, batch, lr):
    grid = TimeGrid.from_lr(lr, 3)
    return distance(ODEOptimizer(GradientFlow(quartic)).solve(params, batch, grid).params, batch)


def test_differentiating_twice_by_autograd_is_refused(device):
    x = ones(device).requires_grad_()
    value = end_value(x, ones(device), 0.1)
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(odeopt.SecondOrderError, match="second derivative through a solve"):
        torch.autograd.grad(gradient.sum(), x)


@pytest.mark.parametrize("hessian", [
    torch.func.hessian,
    lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    lambda f: lambda x: torch.autograd.functional.hessian(f, x),
], ids=["func.hessian", "jacrev of jacrev", "autograd.functional.hessian"])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
def test_a_hessian_is_refused(device, hessian):
    with pytest.raises(odeopt.SecondOrderError, match="second derivative"):
        hessian(lambda x: end_value(x, ones(device), 0.1))(ones(device))


def test_a_second_derivative_with_respect_to_the_learning_rate_is_refused(device):
    second = torch.func.grad(torch.func.grad(lambda lr: end_value(ones(device), ones(device), lr)))
    with pytest.raises(odeopt.SecondOrderError, match="second derivative"):
        second(torch.tensor(0.1, device=device))


@pytest.mark.parametrize("name", ["params", "hparams", "batch", "outer_batch", "lr", "state"])
def test_value_and_grad_inside_a_gradient_is_refused(device, name):
    call = ODEOptimizer(GradientFlow(quartic)).value_and_grad(quadratic)
    inputs = {key: ones(device) for key in ("params", "hparams", "batch", "outer_batch", "state")}
    inputs["lr"] = torch.tensor(0.1, device=device)

    def value(x):
        chosen = {**inputs, name: x}
        return call(grid=TimeGrid.from_lr(chosen.pop("lr"), 3), **chosen).value

    with pytest.raises(odeopt.SecondOrderError, match=r"inside torch.func.grad.*opt.solve"):
        torch.func.grad(value)(inputs[name])


# Inputs of a wrong kind


@both
@pytest.mark.parametrize("dtype", [
    torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
])  # fmt: skip
def test_params_of_a_dtype_that_cannot_be_solved_are_refused(device, run, dtype):
    params = torch.ones(2, dtype=dtype, device=device)
    opt = ODEOptimizer(GradientFlow(quadratic))
    with pytest.raises(odeopt.InputError, match=f"params.* has dtype {dtype}; expected torch.floa"):
        run(opt, total, params, ones(device), GRID)


@both
@pytest.mark.parametrize(("params", "message"), [
    ({}, "params holds no tensor"), ((), "params holds no tensor"), (None, "params.* is a NoneTy"),
    (1.0, "params.* is a float"), ({"w": np.ones(2)}, r"params\['w'\] is a ndarray"),
    ([torch.ones(2), 3], r"params\[1\] is a int"),
])  # fmt: skip
def test_params_that_are_no_tensors_are_refused(device, run, params, message):
    with pytest.raises(odeopt.InputError, match=message):
        run(ODEOptimizer(GradientFlow(quadratic)), total, params, ones(device), GRID)


@both
@pytest.mark.parametrize("other", [
    torch.ones(2, dtype=torch.float32), torch.ones(2, device="meta"),
], ids=["dtype", "device"])  # fmt: skip
def test_params_of_mixed_dtypes_or_devices_are_refused(device, run, other):
    params = {"a": torch.ones(2), "b": other}
    with pytest.raises(odeopt.InputError, match=r"params\['b'\] is .*use one dtype and one device"):
        run(ODEOptimizer(GradientFlow(quadratic)), total, params, ones(device), GRID)


@both
def test_a_numpy_batch_is_refused(device, run):
    batch = {"x": [np.ones(2)]}
    with pytest.raises(odeopt.InputError, match=r"batch\['x'\]\[0\] is a numpy .*from_numpy"):
        run(ODEOptimizer(GradientFlow(quadratic)), total, ones(device), batch, GRID)


def test_a_numpy_outer_batch_is_refused(device):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(total)
    with pytest.raises(odeopt.InputError, match=r"outer_batch.* is a numpy array"):
        call(ones(device), ones(device), GRID, np.ones(2))


@both
@pytest.mark.parametrize("grid", [0.1, 10, None, torch.linspace(0, 1, 5), TimeGrid])
def test_a_grid_of_another_kind_is_refused(device, run, grid):
    with pytest.raises(odeopt.InputError, match=r"(?s)grid is .*; expected a TimeGrid, e.g."):
        run(ODEOptimizer(GradientFlow(quadratic)), total, ones(device), ones(device), grid)


@both
@pytest.mark.parametrize("state", [torch.ones(3), {"w": torch.ones(2)}, [], torch.ones(2, 2, 2)])
def test_a_warm_start_of_another_shape_is_refused(device, run, state):
    opt = ODEOptimizer(GradientFlow(quadratic))
    with pytest.raises(odeopt.InputError, match=r"(?s)state has the structure .*expected"):
        run(opt, total, ones(device), ones(device), GRID, state=state)


@both
@pytest.mark.parametrize("returned", [
    lambda y: {"w": y}, lambda y: y.sum(), lambda y: torch.stack([y, y]), lambda y: y[:1],
    lambda y: 1.0, lambda y: None, lambda y: [y],
], ids=["structure", "scalar", "matrix", "short", "number", "None", "list"])  # fmt: skip
def test_a_velocity_of_another_structure_or_shape_is_refused(device, run, returned):
    opt = ODEOptimizer(lambda t, y, c, hp, b: returned(y))
    with pytest.raises(odeopt.InputError, match=r"(?s)the velocity has the structure.*expected"):
        run(opt, total, ones(device), ones(device), GRID)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.complex128])
def test_a_velocity_of_another_dtype_is_refused(device, run, dtype):
    opt = ODEOptimizer(lambda t, y, c, hp, b: -y.to(dtype))
    with pytest.raises(odeopt.InputError, match="the velocity"):
        run(opt, total, ones(device), ones(device), GRID)


@both
@pytest.mark.parametrize("returned", [
    lambda p: p**2, lambda p: 1.0, lambda p: None, lambda p: (p.sum(), 1),
    lambda p: p.sum().to(torch.int64), lambda p: p.sum() * 1j,
], ids=["vector", "number", "None", "pair", "integer", "complex"])  # fmt: skip
def test_a_loss_that_is_no_real_scalar_is_refused(device, run, returned):
    opt = ODEOptimizer(GradientFlow(lambda p, b: returned(p)))
    with pytest.raises(
        odeopt.InputError, match=r"(?s)loss returned .*floating-point scalar tensor"
    ):
        run(opt, total, ones(device), ones(device), GRID)


@pytest.mark.parametrize("returned", [lambda p: p**2, lambda p: 1.0, lambda p: (p.sum(), 1)])
def test_an_outer_loss_that_is_no_scalar_is_refused(device, returned):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(lambda p, b: returned(p))
    with pytest.raises(odeopt.InputError, match=r"(?s)outer_loss returned .*scalar tensor"):
        call(ones(device), ones(device), GRID, ones(device))


def test_an_outer_loss_without_aux_is_refused_where_aux_is_promised(device):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(total, has_aux=True)
    with pytest.raises(
        odeopt.InputError, match=r"(?s)has_aux=True, but outer_loss .*expected a pair"
    ):
        call(ones(device), ones(device), GRID, ones(device))


@both
@pytest.mark.parametrize(("loss", "with_hparams", "names"), [
    (lambda p: p.sum(), False, r"\(params, batch\)"),
    (lambda p, b, hp: p.sum(), False, r"\(params, batch\)"),
    (lambda p, b: p.sum(), True, r"\(params, batch, hparams\)"),
    (lambda: 1.0, True, r"\(params, batch, hparams\)"),
])  # fmt: skip
def test_a_loss_with_a_wrong_number_of_arguments_is_refused(device, run, loss, with_hparams, names):
    hparams = ones(device) if with_hparams else None
    opt = ODEOptimizer(GradientFlow(loss))
    with pytest.raises(
        odeopt.InputError, match=f"loss cannot be called with {names}.*exactly when"
    ):
        run(opt, total, ones(device), ones(device), GRID, hparams=hparams)


def test_an_outer_loss_with_a_wrong_number_of_arguments_is_refused(device):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(lambda p: p.sum())
    with pytest.raises(
        odeopt.InputError, match=r"outer_loss cannot be called with \(params, batch"
    ):
        call(ones(device), ones(device), GRID, ones(device))


def test_an_outer_loss_that_cannot_take_observed_states_is_refused(device):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(total)
    grid = TimeGrid.from_lr(0.1, 3, observe=[1])
    with pytest.raises(odeopt.InputError, match=r"outer_loss cannot .*keywords \['observed'\]"):
        call(ones(device), ones(device), grid, ones(device))


@both
def test_a_type_error_inside_the_loss_is_left_as_it_is(device, run):
    opt = ODEOptimizer(GradientFlow(lambda p, b: p + "text"))
    with pytest.raises(TypeError, match=r"unsupported operand|must be Tensor") as caught:
        run(opt, total, ones(device), ones(device), GRID)
    assert not isinstance(caught.value, odeopt.OdeoptError)


# Tasks


@both
@pytest.mark.parametrize("second", [(2, 2), ()])
def test_a_batch_without_a_leading_task_dimension_is_refused(device, run, second):
    batch = {"x": ones(device, 3, 2), "y": torch.ones(second, device=device)}
    opt = ODEOptimizer(GradientFlow(lambda p, b: p.sum()))
    with pytest.raises(odeopt.InputError, match=r"batch\['y'\] has shape .*dimension of 3, since"):
        run(opt, total, ones(device), batch, GRID, tasks=True)


@pytest.mark.parametrize("shape", [(2, 2), ()])
def test_an_outer_batch_without_a_leading_task_dimension_is_refused(device, shape):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(total, tasks=True)
    with pytest.raises(odeopt.InputError, match=r"outer_batch.* has shape .*task dimension of 3"):
        call(ones(device), ones(device, 3, 2), GRID, torch.ones(shape, device=device))


@both
def test_tasks_that_nothing_counts_are_refused(device, run):
    opt = ODEOptimizer(GradientFlow(lambda p, b: p.sum()))
    with pytest.raises(odeopt.InputError, match="neither the batch nor the grid has a task dimens"):
        run(opt, total, ones(device), {"name": "x"}, GRID, tasks=True)


@both
def test_no_tasks_at_all_are_refused(device, run):
    opt = ODEOptimizer(GradientFlow(quadratic))
    with pytest.raises(odeopt.InputError, match="task dimension has length 0"):
        run(opt, total, ones(device), torch.ones(0, 2, device=device), GRID, tasks=True)


@both
def test_a_grid_with_tasks_is_refused_without_tasks(device, run):
    grid = TimeGrid.uniform(torch.ones(3, device=device), 4)
    opt = ODEOptimizer(GradientFlow(quadratic))
    with pytest.raises(odeopt.InputError, match=r"grid holds 3 tasks, .*pass tasks=True"):
        run(opt, total, ones(device), ones(device), grid)


@both
def test_a_grid_for_another_number_of_tasks_is_refused(device, run):
    grid = TimeGrid.uniform(torch.ones(3, device=device), 4)
    opt = ODEOptimizer(GradientFlow(quadratic))
    with pytest.raises(odeopt.InputError, match=r"3.*tasks|task.* 3"):
        run(opt, total, ones(device), ones(device, 2, 2), grid, tasks=True)


# Choices that do not fit


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


# Limits


def stiff(device):
    """A quadratic with rates 1 and 100 over T = 1; the first 500 Euler steps are stable."""
    return ones(device), torch.tensor([1.0, 100.0], device=device), TimeGrid.uniform(1.0, 500)


def slow_part(params, batch, hparams=None):
    return params[0]


def continuous(solver, every, safety=None):
    return ODEOptimizer(
        GradientFlow(quadratic), adjoint=ContinuousAdjoint(solver), checkpoints=Every(every),
        safety=safety,
    )  # fmt: skip


@both
def test_a_mesh_too_coarse_for_the_backward_method_is_refused(device, run):
    with pytest.raises(odeopt.StabilityError, match=r"from state 450 \(t = 0\.9\) is too long"):
        run(continuous(ModifiedEuler(), 50), total, *stiff(device))


@both
def test_a_mesh_fine_enough_for_the_backward_method_is_accepted(device, run):
    exact = run(ODEOptimizer(GradientFlow(quadratic)), total, *stiff(device))
    found = run(continuous(ModifiedEuler(), 1), total, *stiff(device))
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-2)


@both
def test_the_unstable_task_is_named(device, run):
    batch = torch.tensor([1.0, 100.0], device=device)
    with pytest.raises(odeopt.StabilityError, match=r"^task 1: the interval from state 450"):
        run(continuous(ModifiedEuler(), 50), total, ones(device), batch,
            TimeGrid.uniform(1.0, 500), tasks=True)  # fmt: skip


@both
def test_states_interpolated_too_coarsely_are_refused(device, run):
    with pytest.raises(
        odeopt.StabilityError, match=r"from state 0 \(t = 0\) misses the flow.*Grad"
    ):
        run(continuous(RK4(), 25), slow_part, *stiff(device))


@both
def test_growth_of_the_adjoint_is_refused(device, run):
    params, grid = ones(device), TimeGrid.uniform(1.0, 100)
    with pytest.raises(odeopt.StabilityError, match=r"adjoint variable grew by .*limit 1e\+08"):
        run(continuous(RK4(), 1), total, params, -25 * ones(device), grid)


@both
def test_growth_is_no_fault_of_the_exact_adjoint(device, run):
    params, grid = ones(device), TimeGrid.uniform(1.0, 100)
    found = run(ODEOptimizer(GradientFlow(quadratic)), total, params, -25 * ones(device), grid)
    torch.testing.assert_close(found, torch.full_like(found, 1.25**100))


def valley(params, batch, hparams=None):
    return 10 * (params[0] - torch.sin(params[1])) ** 2 + 0.05 * params[1] ** 2


@both
@pytest.mark.parametrize("t1", [1.0, 2.0])
def test_a_gradient_of_backsolve_without_a_right_digit_is_refused(device, run, t1):
    params, grid = torch.tensor([1.0, 2.0], device=device), TimeGrid.uniform(t1, int(50 * t1))
    opt = ODEOptimizer(GradientFlow(valley), RK4(), BacksolveAdjoint())
    with pytest.raises((odeopt.StabilityError, odeopt.DivergenceError)):
        run(opt, distance, params, ones(device), grid)


@pytest.mark.parametrize("adjoint", [
    ContinuousAdjoint(ModifiedEuler()), ContinuousAdjoint(RK4()), BacksolveAdjoint(),
], ids=["modified Euler", "RK4", "backsolve"])  # fmt: skip
def test_an_outer_loss_of_observed_states_alone_is_no_growth(device, adjoint):
    def outer(params, batch, observed):
        return observed[0].sum()

    grid = TimeGrid.from_lr(0.01, 20, observe=[10])
    res = ODEOptimizer(GradientFlow(quadratic), adjoint=adjoint).value_and_grad(outer)(
        ones(device), ones(device), grid, ones(device)
    )
    expected = torch.full_like(res.grads.params, math.exp(-0.1))
    torch.testing.assert_close(res.grads.params, expected, rtol=1e-2, atol=0.0)


@both
@pytest.mark.parametrize("adjoint", [
    DiscreteAdjoint(), ContinuousAdjoint(ModifiedEuler()), BacksolveAdjoint(),
], ids=lambda adjoint: type(adjoint).__name__)  # fmt: skip
def test_a_gradient_of_zero_is_no_fault(device, run, adjoint):
    opt = ODEOptimizer(GradientFlow(quadratic), adjoint=adjoint)
    found = run(opt, lambda p, b: 0.0 * p.sum(), ones(device), ones(device), GRID)
    assert not found.any()


@both
def test_steps_beyond_the_stability_limit_are_refused_by_power_iteration(device, run):
    opt = ODEOptimizer(GradientFlow(quadratic), safety=Safety(power_iterations=3))
    batch = torch.tensor([10.0, 1.0], device=device)
    with pytest.raises(
        odeopt.StabilityError, match=r"is 1\.2\d times as long as the stability lim"
    ):
        run(opt, total, ones(device), batch, TimeGrid.from_lr(0.25, 10))


@both
def test_steps_below_the_stability_limit_pass_power_iteration(device, run):
    batch = torch.tensor([10.0, 1.0], device=device)
    arguments = total, ones(device), batch, TimeGrid.from_lr(0.19, 10)
    watched, plain = (
        run(ODEOptimizer(GradientFlow(quadratic), safety=safety), *arguments)
        for safety in (Safety(power_iterations=3), Safety())
    )
    assert torch.equal(watched, plain)


@both
def test_power_iteration_names_the_task(device, run):
    opt = ODEOptimizer(GradientFlow(quadratic), safety=Safety(power_iterations=3))
    batch = torch.tensor([1.0, 10.0], device=device)
    with pytest.raises(odeopt.StabilityError, match=r"^task 1: "):
        run(opt, total, ones(device), batch, TimeGrid.from_lr(0.25, 10), tasks=True)


def test_power_iterations_are_counted(device):
    def hvps(count):
        opt = ODEOptimizer(GradientFlow(quadratic), safety=Safety(power_iterations=count))
        return opt.value_and_grad(total)(ones(device), ones(device), GRID, ones(device)).stats.hvps

    assert [hvps(0), hvps(3)] == [4, 16]


@both
def test_without_limits_what_is_unstable_passes(device, run):
    opt = continuous(ModifiedEuler(), 50, Safety.off())
    assert bool(torch.isfinite(run(opt, total, *stiff(device))).all())


@both
def test_without_limits_coarse_states_and_growth_pass(device, run):
    off = Safety.off()
    coarse = run(continuous(RK4(), 25, off), slow_part, *stiff(device))
    grown = run(continuous(RK4(), 1, off), total, ones(device), -25 * ones(device),
                TimeGrid.uniform(1.0, 100))  # fmt: skip
    assert bool(torch.isfinite(coarse).all())
    assert bool((grown > 1e8).all())


@both
def test_without_limits_what_is_not_finite_is_still_refused(device, run):
    opt = ODEOptimizer(GradientFlow(quartic), safety=Safety.off())
    with pytest.raises(odeopt.DivergenceError, match="not finite after step"):
        run(opt, total, 3 * ones(device), ones(device), TimeGrid.from_lr(1.0, 20))


@pytest.mark.parametrize("name", ["step_ratio", "defect", "growth"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_safety_refuses_a_limit_that_is_not_positive(name, value):
    with pytest.raises(odeopt.InputError, match=rf"Safety\.{name} is .*; expected a positive"):
        Safety(**{name: value})


@pytest.mark.parametrize("name", ["step_ratio", "defect", "growth"])
def test_safety_refuses_a_limit_that_is_no_number(name):
    with pytest.raises(odeopt.InputError, match=rf"Safety\.{name}"):
        Safety(**{name: "high"})


@pytest.mark.parametrize("value", [-1, 1.5, "3", None])
def test_safety_refuses_a_count_that_is_no_natural_number(value):
    with pytest.raises(odeopt.InputError, match=r"Safety\.power_iterations is .*; expected"):
        Safety(power_iterations=value)


def test_safety_that_is_off_has_no_limits():
    off = Safety.off()
    assert (off.step_ratio, off.defect, off.growth, off.power_iterations) == (None, None, None, 0)
