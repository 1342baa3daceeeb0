"""What each choice costs: evaluations, products, replays, kept states."""

from __future__ import annotations

import pytest
import torch
from support.solvers import start

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
    Midpoint,
    ModifiedEuler,
    ODEOptimizer,
    ReverseMode,
    TimeGrid,
    TruncatedAdjoint,
)

N = 12


class Counting:
    """A loss that counts how often Python calls it."""

    def __init__(self):
        self.calls = 0

    def __call__(self, params, batch):
        self.calls += 1
        return torch.log(torch.cosh(batch @ params)).sum() / 3


def counted_optimizer(*choices, **keywords):
    """An optimiser with a counting loss, and the number of trial calls that are not counted."""
    loss = Counting()
    opt = ODEOptimizer(GradientFlow(loss), Euler())
    opt.solve(torch.zeros(2), torch.eye(2), TimeGrid.uniform(1.0, 1))
    probes, loss.calls = loss.calls - 1, 0
    return ODEOptimizer(GradientFlow(loss), *choices, **keywords), loss, probes


def cost(solver, adjoint, schedule, device, tasks=False, horizon=0.5, steps=N):
    """(stats, calls of the loss for each task, without the trial ones)."""
    opt, loss, probes = counted_optimizer(solver, adjoint, schedule)
    batch = torch.randn((3, 2, 2) if tasks else (2, 2), device=device)
    outer = lambda params, batch: params.square().sum()  # noqa: E731
    grid = TimeGrid.uniform(horizon, steps)
    stats = opt.value_and_grad(outer, tasks=tasks)(
        start(device), batch, grid, batch if tasks else None
    ).stats
    turns = 3 if tasks else 1  # so few are solved one after the other
    calls = loss.calls - (probes if steps else 0)
    assert calls % turns == 0
    return stats, calls // turns


STAGES = {Euler(): 1, ModifiedEuler(): 2, Midpoint(): 2, RK4(): 4}


REPLAYS = {  # schedule: (replayed steps, most states kept), by hand for 12 steps
    Every(1): (0, 12),
    Every(2): (6, 6),
    Every(5): (9, 5),
    Density(5): (7, 6),
    Binomial(1): (55, 1),
    Binomial(3): (10, 3),
    Binomial(12): (0, 12),
}


def name(value):
    inner = next((str(v) for v in vars(value).values() if isinstance(v, int)), "")
    return type(value).__name__ + inner


@pytest.mark.parametrize("tasks", [False, True], ids=["one", "tasks"])
@pytest.mark.parametrize("schedule", REPLAYS, ids=name)
@pytest.mark.parametrize("solver", STAGES, ids=lambda s: type(s).__name__)
def test_cost_of_the_exact_adjoint(solver, schedule, tasks, device):
    stats, calls = cost(solver, DiscreteAdjoint(), schedule, device, tasks)
    stages, (replayed, stored) = STAGES[solver], REPLAYS[schedule]
    assert stats.steps == N
    assert stats.replayed_steps == replayed
    assert stats.hvps == stages * N
    assert stats.gradient_evaluations == stages * (N + replayed) == calls - stats.hvps
    assert stats.stored_bytes == stats.stored_states * 16 * (3 if tasks else 1)
    if schedule is not next(reversed(REPLAYS)):  # with slots to spare fewer may do
        assert stats.stored_states == stored


@pytest.mark.parametrize("solver", STAGES, ids=lambda s: type(s).__name__)
def test_cost_of_graded_checkpoints(solver, device):
    stats, calls = cost(solver, DiscreteAdjoint(), Graded(4), device)
    assert stats.hvps == STAGES[solver] * N
    assert stats.gradient_evaluations == STAGES[solver] * (N + stats.replayed_steps)
    assert stats.gradient_evaluations + stats.hvps == calls


@pytest.mark.parametrize(
    ("method", "hvps", "gradients", "points"),
    [(Euler(), 1, 0, 1), (ModifiedEuler(), 2, 0, 2), (Midpoint(), 2, 1, 3), (RK4(), 4, 0, 3)],
    ids=["euler", "modified-euler", "midpoint", "rk4"],
)
@pytest.mark.parametrize(
    ("schedule", "nodes", "replayed"),
    [(Every(1), 12, 0), (Every(5), 3, 0), (Density(4), 4, 0), (Binomial(3), 12, 10)],
    ids=["every1", "every5", "density4", "binomial3"],
)
@pytest.mark.parametrize("solver", [Euler(), RK4()], ids=["by-euler", "by-rk4"])
def test_cost_of_the_continuous_adjoint(
    solver, schedule, nodes, replayed, method, hvps, gradients, points, device
):
    """`points`: linearisations per interval, each one call; RK4 uses the middle one twice."""
    stats, calls = cost(solver, ContinuousAdjoint(method), schedule, device)
    forward = STAGES_OF[type(solver)] * (N + replayed)
    assert stats.replayed_steps == replayed
    assert stats.hvps == hvps * nodes
    assert stats.gradient_evaluations == forward + gradients * nodes
    assert stats.stored_states == (3 if replayed else nodes)
    assert calls == forward + points * nodes


STAGES_OF = {type(solver): stages for solver, stages in STAGES.items()}


@pytest.mark.parametrize("solver", STAGES, ids=lambda s: type(s).__name__)
def test_cost_of_the_cheap_and_the_memoryless_adjoints(solver, device):
    forward = STAGES[solver] * N
    stats, calls = cost(solver, FirstOrderAdjoint(), Every(1), device)
    assert (stats.gradient_evaluations, stats.hvps, stats.stored_states) == (forward, 0, 0)
    assert calls == forward
    stats, calls = cost(solver, BacksolveAdjoint(RK4()), Every(1), device)
    assert (stats.gradient_evaluations, stats.hvps, stats.stored_states) == (forward, 4 * N, 0)
    assert calls == forward + 4 * N


@pytest.mark.parametrize(
    ("schedule", "replayed", "stored"), [(Every(1), 0, 5), (Every(3), 3, 2), (Binomial(2), 2, 2)]
)
@pytest.mark.parametrize("solver", STAGES, ids=lambda s: type(s).__name__)
def test_cost_of_the_truncated_adjoint(solver, schedule, replayed, stored, device):
    stats, calls = cost(solver, TruncatedAdjoint(5), schedule, device)
    stages = STAGES[solver]
    assert stats.replayed_steps == replayed
    assert stats.stored_states == stored
    assert stats.hvps == 5 * stages
    assert stats.gradient_evaluations == stages * (N + replayed) == calls - stats.hvps


@pytest.mark.parametrize(("tasks", "first_step"), [(False, None), (True, 0.1)])
@pytest.mark.parametrize("schedule", [Every(1), Every(3), Density(4), Graded(4), Binomial(3)])
def test_cost_of_the_adaptive_solver(schedule, first_step, tasks, device):
    solver = Adaptive(1e-5, 1e-7, first_step=first_step)
    stats, calls = cost(solver, DiscreteAdjoint(), schedule, device, tasks, horizon=3.0, steps=2)
    assert stats.steps > 4
    assert stats.hvps == 6 * stats.steps
    assert stats.gradient_evaluations == calls - stats.hvps
    twice = 1 if schedule.needs_length else 0
    attempts = stats.gradient_evaluations - (2 if first_step is None else 1)
    attempts -= 6 * (stats.replayed_steps + twice * stats.steps)
    assert attempts % 6 == 0
    assert attempts >= 6 * stats.steps


@pytest.mark.parametrize("method", [Euler(), ModifiedEuler(), Midpoint(), RK4()])
def test_cost_of_a_library_solver(method, device):
    stats, calls = cost(DormandPrince(), ContinuousAdjoint(method), Every(3), device)
    assert stats.hvps == 4 * STAGES_OF[type(method)]
    assert stats.stored_states == 4
    points = {Euler: 1, ModifiedEuler: 2, Midpoint: 3, RK4: 3}[type(method)]
    extra = 4 if isinstance(method, Midpoint) else 0
    assert calls - 4 * points == stats.gradient_evaluations - extra


@pytest.mark.parametrize("mode", [ReverseMode(), ForwardOverReverse()])
@pytest.mark.parametrize("solver", [*STAGES, Adaptive(1e-4, 1e-6)])
def test_every_call_of_the_loss_is_a_gradient_or_an_hvp(solver, mode, device):
    stats, calls = cost(solver, DiscreteAdjoint(mode), Binomial(3), device)
    assert stats.gradient_evaluations + stats.hvps == calls


@pytest.mark.parametrize("schedule", [Every(1), Every(5), Binomial(3), Graded(3)])
@pytest.mark.parametrize("adjoint", [DiscreteAdjoint(), ContinuousAdjoint(RK4())])
@pytest.mark.parametrize("solver", [RK4(), Adaptive(1e-4, 1e-6)])
def test_both_paths_cost_the_same(solver, adjoint, schedule, device):
    opt, loss, _ = counted_optimizer(solver, adjoint, schedule)
    batch = torch.randn(2, 2, device=device)
    outer = lambda params, batch: params.square().sum()  # noqa: E731
    grid = TimeGrid.uniform(0.5, N)
    res = opt.value_and_grad(outer)(start(device), batch, grid, None)
    calls, loss.calls = loss.calls, 0
    sol = opt.solve(start(device).requires_grad_(), batch, grid)
    outer(sol.params, None).backward()
    assert sol.stats == res.stats
    ends = 4 if adjoint.needs_velocity else 0  # velocities at both ends, compared in backward()
    assert loss.calls == calls + ends


def test_power_iterations_are_counted(device):
    opt, loss, probes = counted_optimizer(RK4(), safety=odeopt.Safety(power_iterations=3))
    batch = torch.randn(2, 2, device=device)
    outer = lambda params, batch: params.square().sum()  # noqa: E731
    stats = opt.value_and_grad(outer)(start(device), batch, TimeGrid.uniform(0.5, N), None).stats
    assert stats.hvps == N * (4 + 3)
    recorded = N * 4  # their graphs are there
    assert loss.calls - probes == stats.gradient_evaluations + stats.hvps - recorded


def test_nothing_to_do_costs_nothing(device):
    stats, calls = cost(RK4(), DiscreteAdjoint(), Every(1), device, steps=0)
    assert stats == odeopt.Stats()
    assert calls == 0
