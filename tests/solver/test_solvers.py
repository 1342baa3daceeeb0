"""Solvers against an outside integrator and against each other, and what they say they cost."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

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
    PIController,
    ReverseMode,
    TimeGrid,
    Torchdiffeq,
    TruncatedAdjoint,
)
from odeopt.checkpoint import Advance, CheckpointSchedule, Store
from odeopt.solver import BOGACKI_SHAMPINE

ONE_STEP = {"rtol": 1e9, "atol": 1e9, "first_step": 1e3}
"""Adaptive with these takes one step per interval."""


def turning(t, state, consts, hparams, batch):
    """Neither a gradient field nor autonomous; `batch` is the speed."""
    u, v = state.unbind(-1)
    wave = torch.sin(3 * t) + 1.2
    return batch * torch.stack([torch.tanh(v) * wave - u, -torch.sin(u) - 0.3 * v * t])


@functools.cache
def outside(speed, times):
    """States at `times`, by scipy's DOP853 with tight tolerances."""

    def rhs(t, y):
        args = torch.tensor(t), torch.from_numpy(y), (), None, torch.tensor(speed)
        return turning(*args).numpy()

    found = solve_ivp(
        rhs, (0, times[-1]), [0.8, -1.1], "DOP853", times, rtol=1e-13, atol=1e-14, max_step=0.05
    )
    return torch.from_numpy(np.ascontiguousarray(found.y.T))


def start(device):
    return torch.tensor([0.8, -1.1], device=device)


def optimizer(solver):
    """Torchdiffeq solvers cannot be replayed by the default adjoint."""
    return ODEOptimizer(turning, solver, ContinuousAdjoint(RK4()))


def final(solver, grid, device, speed=1.0):
    return optimizer(solver).solve(start(device), torch.tensor(speed, device=device), grid)


class Recorder(CheckpointSchedule):
    """Every state, and the times that the forward sweep went through."""

    is_mesh = True
    needs_length = False

    def __init__(self):
        self.times = []

    def forward(self, n):
        index = 0
        while n is None or index < n:
            progress = yield Store(index)
            self.times.append(progress.t)
            yield Advance(index, index + 1)
            index += 1

    def backward(self, n, kept):
        return Every(1).backward(n, kept)


def recorded_times(solver, grid, speed, tasks=False):
    """The start of each accepted step: shape [n] or [n, tasks]."""
    recorder = Recorder()
    opt = ODEOptimizer(turning, solver, checkpoints=recorder)
    opt.solve(start(speed.device), speed, grid, tasks=tasks)
    return torch.stack(recorder.times)


# --- accuracy --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "order", "steps"),
    [
        (Euler(), 1, 400),
        (ModifiedEuler(), 2, 100),
        (Midpoint(), 2, 100),
        (RK4(), 4, 60),
        (Adaptive(**ONE_STEP, tableau=BOGACKI_SHAMPINE), 3, 50),
        (Adaptive(**ONE_STEP), 5, 24),
        (Torchdiffeq("midpoint"), 2, 100),
        (Torchdiffeq("rk4"), 4, 60),
    ],
    ids=["euler", "modified-euler", "midpoint", "rk4", "bs3", "dopri5", "td-midpoint", "td-rk4"],
)
def test_order_of_convergence(solver, order, steps, device):
    expected = outside(2.0, (3.0,))[-1]
    ends = [
        final(solver, TimeGrid.uniform(3.0, steps * factor), device, speed=2.0).params.cpu()
        for factor in (1, 2, 4, 8)
    ]
    slopes = -np.diff(np.log2([float((end - expected).norm()) for end in ends]))
    assert abs(slopes.mean() - order) < 0.2, slopes


@pytest.mark.parametrize("tableau", [odeopt.solver.DORMAND_PRINCE, BOGACKI_SHAMPINE])
@pytest.mark.parametrize("rtol", [1e-3, 1e-5, 1e-7])
def test_adaptive_meets_its_tolerance(rtol, tableau, device):
    grid = TimeGrid.uniform(3.0, 1)
    found = final(Adaptive(rtol, rtol, tableau), grid, device, speed=2.0).params.cpu()
    error = float((found - outside(2.0, (3.0,))[-1]).norm())
    assert error < 20 * rtol


def test_adaptive_needs_about_as_many_evaluations_as_scipy(device):
    grid, speed = TimeGrid.uniform(3.0, 1), torch.tensor(2.0, device=device)
    stats = ODEOptimizer(turning, Adaptive(1e-7, 1e-9)).solve(start(device), speed, grid).stats

    def rhs(t, y):
        args = torch.tensor(t), torch.from_numpy(y), (), None, torch.tensor(2.0)
        return turning(*args).numpy()

    theirs = solve_ivp(rhs, (0, 3.0), [0.8, -1.1], "RK45", rtol=1e-7, atol=1e-9)
    assert 0.5 < stats.gradient_evaluations / theirs.nfev < 2


@pytest.mark.parametrize("solver", [DormandPrince(1e-10, 1e-12), Torchdiffeq("bosh3", 1e-9, 1e-11)])
def test_torchdiffeq_agrees_with_adaptive_at_tight_tolerances(solver, device):
    grid = TimeGrid([0.0, 0.5, 0.5, 2.0], observe=[1, 2])
    found, expected = final(solver, grid, device), final(Adaptive(1e-11, 1e-13), grid, device)
    torch.testing.assert_close(found.params, expected.params, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.observed, expected.observed, rtol=1e-5, atol=1e-7)


def test_torchdiffeq_with_tasks_agrees_with_adaptive(device):
    speed = torch.tensor([0.5, 1.0, 2.0], device=device)
    found, expected = (
        optimizer(solver).solve(start(device), speed, TimeGrid.uniform(2.0, 3), tasks=True).params
        for solver in (DormandPrince(1e-10, 1e-12), Adaptive(1e-11, 1e-13))
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


# --- steps of the adaptive solver ------------------------------------------------------------


@pytest.mark.parametrize("first_step", [None, 0.03])
def test_adaptive_lands_on_the_times_of_the_grid(first_step, device):
    grid = TimeGrid(torch.tensor([0.0, 0.17, 0.9, 0.95, 2.0], device=device))
    speed = torch.tensor(1.0, device=device)
    times = recorded_times(Adaptive(1e-6, 1e-8, first_step=first_step), grid, speed)
    assert set(grid.times[:-1].tolist()) <= set(times.tolist())
    assert bool((times.diff() > 0).all())


def test_landing_does_not_shorten_the_steps_that_follow(device):
    speed = torch.tensor(1.0, device=device)
    grid = TimeGrid(torch.tensor([0.0, 1.0, 1.0 + 1e-7, 3.0], device=device))
    free = recorded_times(Adaptive(1e-6, 1e-8), TimeGrid.uniform(3.0, 1), speed)
    times = recorded_times(Adaptive(1e-6, 1e-8), grid, speed)
    assert len(times) <= len(free) + 4


def test_adaptive_observes_states_at_grid_times(device):
    times = torch.tensor([0.0, 0.4, 1.1, 2.0], device=device)
    sol = final(Adaptive(1e-8, 1e-10), TimeGrid(times, observe=[0, 1, 2, 3]), device)
    expected = outside(1.0, tuple(times.tolist()))
    torch.testing.assert_close(torch.stack(sol.observed).cpu(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(sol.observed[0], start(device))
    assert torch.equal(sol.observed[3], sol.params)


def test_an_observed_state_is_where_a_shorter_solve_ends(device):
    long = final(Adaptive(1e-6, 1e-8), TimeGrid([0.0, 0.7, 2.0], observe=[1]), device)
    short = final(Adaptive(1e-6, 1e-8), TimeGrid([0.0, 0.7]), device)
    assert torch.equal(long.observed[0], short.params)


@pytest.mark.parametrize("solver", [Adaptive(1e-6, 1e-8), DormandPrince(), RK4()])
def test_intervals_of_zero_length_change_nothing(solver, device):
    with_zeros = final(solver, TimeGrid([0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0]), device)
    without = final(solver, TimeGrid([0.0, 0.5, 1.0]), device)
    assert torch.equal(with_zeros.params, without.params)


@pytest.mark.parametrize("solver", [Adaptive(), DormandPrince(), Euler(), RK4()])
@pytest.mark.parametrize("times", [[0.0], [0.0, 0.0, 0.0]])
def test_no_time_no_change(solver, times, device):
    sol = final(solver, TimeGrid(times), device)
    assert torch.equal(sol.params, start(device))


@pytest.mark.parametrize("horizons", [None, [1.0, 2.0, 0.0, 0.3]])
def test_each_task_takes_the_steps_of_a_separate_solve(horizons, device):
    speed = torch.tensor([0.2, 1.0, 5.0, 20.0], device=device)
    t1 = 1.0 if horizons is None else torch.tensor(horizons, device=device)
    grid = TimeGrid.uniform(t1, 2, observe=[1])
    opt = ODEOptimizer(turning, Adaptive(1e-6, 1e-8))
    together = opt.solve(start(device), speed, grid, tasks=True)
    for task in range(4):
        own = TimeGrid.uniform(1.0 if horizons is None else horizons[task], 2, observe=[1])
        alone = opt.solve(start(device), speed[task], own)
        torch.testing.assert_close(together.params[task], alone.params, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(
            together.observed[0][task], alone.observed[0], rtol=1e-12, atol=1e-13
        )


def test_steps_per_task_are_its_own(device):
    speed, grid = torch.tensor([0.2, 20.0], device=device), TimeGrid.uniform(1.0, 1)
    together = recorded_times(Adaptive(), grid, speed, tasks=True)
    for task in range(2):
        alone = recorded_times(Adaptive(), grid, speed[task])
        times = together[:, task].unique_consecutive()
        torch.testing.assert_close(times[times < 1], alone, rtol=1e-10, atol=1e-12)


def test_the_batch_controller_gives_all_tasks_the_same_steps(device):
    speed, grid = torch.tensor([0.2, 1.0, 20.0], device=device), TimeGrid.uniform(1.0, 2)
    solver = Adaptive(1e-7, 1e-9, controller=PIController(per_task=False))
    times = recorded_times(solver, grid, speed, tasks=True)
    assert torch.equal(times, times[:, :1].expand_as(times))
    sol = ODEOptimizer(turning, solver).solve(start(device), speed, grid, tasks=True)
    expected = torch.stack([outside(s, (1.0,))[-1] for s in speed.tolist()])
    torch.testing.assert_close(sol.params.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_the_batch_controller_takes_as_few_steps_as_its_stiffest_task(device):
    speed, grid = torch.tensor([0.2, 20.0], device=device), TimeGrid.uniform(1.0, 1)
    solver = Adaptive(controller=PIController(per_task=False))
    together = recorded_times(solver, grid, speed, tasks=True)
    alone = recorded_times(Adaptive(), grid, speed[1])
    assert len(together) <= 1.2 * len(alone)


def test_too_few_steps_allowed_raises(device):
    with pytest.raises(odeopt.StepLimitError, match="max_steps"):
        final(Adaptive(1e-10, 1e-12, max_steps=5), TimeGrid.uniform(3.0, 1), device)


# --- costs -----------------------------------------------------------------------------------

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
    """(stats, calls of the loss without the trial ones)."""
    opt, loss, probes = counted_optimizer(solver, adjoint, schedule)
    batch = torch.randn((3, 2, 2) if tasks else (2, 2), device=device)
    outer = lambda params, batch: params.square().sum()  # noqa: E731
    grid = TimeGrid.uniform(horizon, steps)
    stats = opt.value_and_grad(outer, tasks=tasks)(
        start(device), batch, grid, batch if tasks else None
    ).stats
    return stats, loss.calls - (probes if steps else 0)


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
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
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
    assert loss.calls == calls


def test_power_iterations_are_counted(device):
    opt, loss, probes = counted_optimizer(RK4(), safety=odeopt.Safety(power_iterations=3))
    batch = torch.randn(2, 2, device=device)
    outer = lambda params, batch: params.square().sum()  # noqa: E731
    stats = opt.value_and_grad(outer)(start(device), batch, TimeGrid.uniform(0.5, N), None).stats
    assert stats.hvps == N * (4 + 3)
    assert loss.calls - probes == stats.gradient_evaluations + stats.hvps


def test_nothing_to_do_costs_nothing(device):
    stats, calls = cost(RK4(), DiscreteAdjoint(), Every(1), device, steps=0)
    assert stats == odeopt.Stats()
    assert calls == 0
