"""What is alive while a gradient is computed."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from odeopt import Binomial, Density, Every, GradientFlow, ODEOptimizer, TimeGrid, TruncatedAdjoint
from odeopt.checkpoint.binomial import optimal_replays
from odeopt.engine.kept import Kept
from odeopt.solver import StepSolver


class Watched(StepSolver):
    """Explicit Euler that knows which of the states it made are still alive."""

    order, stages, stability_limit = 1, 1, 2.0

    def __init__(self):
        self.made = 0
        self.alive = set()
        self.most = 0

    def step(self, velocity, t, dt, y):
        after = y + dt * velocity(t, y)
        if not (torch._C._functorch.is_functorch_wrapped_tensor(after) or after.requires_grad):
            self.made += 1
            self.alive.add(self.made)
            weakref.finalize(after, self.alive.discard, self.made)
            self.most = max(self.most, len(self.alive))
        return after


def quartic(params, batch):
    return (batch * params.square()).sum() / 2 + params.pow(4).sum() / 40


def outer(params, batch):
    return (params - batch).square().sum()


def run(solver, checkpoints, steps, device, adjoint=None, d=8):
    params = torch.linspace(-1, 1, d, device=device)
    batch = torch.linspace(0.1, 2, d, device=device)
    opt = ODEOptimizer(GradientFlow(quartic), solver, adjoint, checkpoints)
    grid = TimeGrid.from_lr(0.001, steps)
    return opt.value_and_grad(outer)(params, batch, grid, torch.ones(d, device=device))


@pytest.fixture
def no_collection():
    """Only reference counts free tensors: a cycle that keeps states alive is seen."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(("slots", "steps"), [(1, 60), (2, 100), (5, 200), (20, 200)])
def test_binomial_holds_its_slots_and_three_working_states(slots, steps, no_collection, device):
    solver = Watched()
    res = run(solver, Binomial(slots), steps, device)
    assert res.stats.stored_states == slots
    assert solver.most <= slots - 1 + 3  # the initial state is not made by a step
    assert res.stats.replayed_steps == optimal_replays(steps, slots)
    assert solver.made == steps + res.stats.replayed_steps


@pytest.mark.parametrize(
    ("schedule", "kept"), [(Every(10), 20 + 8), (Density(25), 25 + 6), (Density(1), 1 + 198)]
)
def test_schedules_on_a_mesh_hold_their_states_and_one_segment(
    schedule, kept, no_collection, device
):
    solver = Watched()
    res = run(solver, schedule, 200, device)
    assert res.stats.stored_states <= kept
    assert solver.most <= kept - 1 + 3


def test_every_state_is_released_as_it_is_used(no_collection, device):
    """When the adjoint variable reaches the middle, only the first half is alive."""
    alive = []

    class Halfway(Watched):
        def pull(self, stepping, t, dt, y0, lam):
            alive.append(len(self.alive))
            return super().pull(stepping, t, dt, y0, lam)

    run(Halfway(), Every(1), 100, device)
    assert len(alive) == 100
    assert all(count <= 99 - k + 2 for k, count in enumerate(alive))


def test_a_pull_releases_the_state_at_the_end_of_its_step(no_collection, monkeypatch, device):
    """It is gone before the memory is looked at, so that each pull leaves one state less."""
    solver, alive = Watched(), []
    monkeypatch.setattr(Kept, "step_done", lambda kept: alive.append(len(solver.alive)))
    run(solver, Every(1), 8, device)
    assert alive == [1, 2, 3, 4, 5, 6, 7, 8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_truncated_holds_the_last_states_only(no_collection, device):
    solver = Watched()
    run(solver, Every(1), 200, device, TruncatedAdjoint(10))
    assert solver.most <= 10 + 3


def test_nothing_is_alive_afterwards(no_collection, device):
    solver = Watched()
    res = run(solver, Binomial(5), 100, device)
    assert solver.made > 100
    assert not solver.alive
    assert not any(tensor.requires_grad for tensor in (res.value, res.grads.params, res.grads.dt))


@pytest.mark.parametrize("schedule", [Every(1), Binomial(5)])
def test_a_solve_without_gradient_keeps_one_state_alive(schedule, no_collection, device):
    solver = Watched()
    params = torch.linspace(-1, 1, 8, device=device)
    opt = ODEOptimizer(GradientFlow(quartic), solver, checkpoints=schedule)
    sol = opt.solve(params, params.abs() + 1, TimeGrid.from_lr(0.001, 50))
    assert not sol.params.requires_grad
    assert len(solver.alive) <= 1


@pytest.mark.parametrize("schedule", [Every(1), Binomial(5)])
def test_a_freed_graph_leaves_nothing_alive(schedule, no_collection, device):
    solver = Watched()
    params = torch.linspace(-1, 1, 8, device=device).requires_grad_()
    opt = ODEOptimizer(GradientFlow(quartic), solver, checkpoints=schedule)
    sol = opt.solve(params, params.detach().abs() + 1, TimeGrid.from_lr(0.001, 50))
    outer(sol.params, 0.0).backward()
    del sol
    assert not solver.alive


def test_to_judge_a_solve_takes_no_kept_state_again(monkeypatch, device):
    put, stored = Kept.store, []
    monkeypatch.setattr(Kept, "store", lambda *args: stored.append(args[1]) or put(*args))
    params = torch.linspace(-1, 1, 8, device=device).requires_grad_()
    sol = ODEOptimizer(GradientFlow(quartic)).solve(
        params, params.detach().abs() + 1, TimeGrid.from_lr(0.001, 8)
    )
    assert stored == list(range(8))
    outer(sol.params, 0.0).backward()
    assert stored == [*range(8), *range(8)]  # by the backward sweep


def live_tensors():
    gc.collect()
    return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())


@pytest.mark.parametrize("schedule", [Every(1), pytest.param(Binomial(3), marks=pytest.mark.slow)])
def test_repeated_calls_do_not_accumulate(schedule, device):
    solver = Watched()
    params = torch.linspace(-1, 1, 8, device=device, requires_grad=True)
    opt = ODEOptimizer(GradientFlow(quartic), solver, checkpoints=schedule)
    call = opt.value_and_grad(outer)
    grid, target = TimeGrid.from_lr(0.01, 20), torch.ones(8, device=device)
    counts = []
    for _ in range(4):
        res = call(params, target, grid, target)
        assert res.grads.params.grad_fn is None
        assert res.value.grad_fn is None
        counts.append(live_tensors())
    assert counts[-1] == counts[1]
    assert params.grad is None


@pytest.mark.slow
def test_thousands_of_steps_in_twenty_slots(no_collection, device):
    solver = Watched()
    res = run(solver, Binomial(20), 2_000, device)
    assert res.stats.stored_states == 20
    assert solver.most <= 20 - 1 + 3
    assert res.stats.replayed_steps == optimal_replays(2_000, 20) == 3_977
    assert solver.made == 2_000 + 3_977
    assert res.stats.stored_bytes == 20 * 8 * 8
