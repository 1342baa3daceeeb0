"""Which steps the adaptive solver takes."""

from __future__ import annotations

import pytest
import torch
from support.recorder import Recorder
from support.solvers import final, outside, start, turning

import odeopt
from odeopt import (
    RK4,
    Adaptive,
    DormandPrince,
    Euler,
    ODEOptimizer,
    PIController,
    TimeGrid,
)
from odeopt.solver import DORMAND_PRINCE, ExplicitRungeKutta


def recorded_times(solver, grid, speed, tasks=False):
    """The start of each accepted step: shape [n] or [n, tasks]."""
    recorder = Recorder()
    opt = ODEOptimizer(turning, solver, checkpoints=recorder)
    begin = start(speed.device).requires_grad_()  # so that states are kept
    opt.solve(begin, speed, grid, tasks=tasks)
    return torch.stack(recorder.times).detach()


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


def test_a_step_out_of_the_range_of_numbers_is_made_shorter(device):
    """The velocity is constant, so that no step has an error; only one of the numbers overflows."""
    velocity = torch.tensor([1e307, 1.0], dtype=torch.float64, device=device)
    flow = odeopt.GradientFlow(lambda p, batch: -(p * velocity).sum())
    opt = ODEOptimizer(flow, Adaptive(first_step=10.0), checkpoints=odeopt.Every())
    begin = torch.tensor([1.7e308, 0.0], dtype=torch.float64, device=device)
    with pytest.raises(odeopt.DivergenceError, match=r"t = 0\.97"):
        opt.solve(begin, None, TimeGrid.uniform(10.0, 1))


def test_a_controller_weighs_this_error_and_the_one_before():
    error, before = torch.tensor(0.5), torch.tensor(0.25)
    own = PIController(safety=0.8, alpha=0.9, beta=0.3).factor(error, before, 2)
    assert own.item() == pytest.approx(0.8 * 0.5**-0.3 * 0.25**0.1)
    assert PIController(alpha=1.0, beta=0.0).factor(error, before, 2) == pytest.approx(
        PIController(alpha=1.0, beta=0.0).factor(error, 2 * before, 2)
    )


@pytest.mark.parametrize(
    "given",
    [
        {"safety": 0.0},
        {"safety": 1.5},
        {"shrink": 1.0},
        {"stretch": 1.0},
        {"alpha": 0.0},
        {"beta": -0.1},
        {"alpha": float("nan")},
    ],
)
def test_a_controller_refuses_numbers_out_of_range(given):
    with pytest.raises(odeopt.InputError, match="expected 0 < safety <= 1"):
        PIController(**given)


def test_the_gradient_of_an_interval_moves_its_steps_in_proportion(device):
    """Against fixed steps that are written as functions of the lengths of two intervals."""
    speed, grid = torch.tensor(1.5, device=device), TimeGrid([0.1, 0.9, 2.0])
    outer = lambda u, batch: (u * torch.tensor([1.0, 2.0], device=device)).sum()  # noqa: E731
    solver = Adaptive(1e-5, 1e-7)
    found = ODEOptimizer(turning, solver).value_and_grad(outer)(start(device), speed, grid, speed)
    times = recorded_times(solver, grid, speed)
    ends = torch.cat([times, grid.times[-1:].to(times)])
    parents = (times >= grid.times[1].to(times)).long()
    lengths = grid.dt.to(times)
    lead = (times - grid.times.to(times)[parents]) / lengths[parents]
    share = ends.diff() / lengths[parents]

    lengths = lengths.clone().requires_grad_()
    begin = 0.1 + torch.stack([torch.zeros_like(lengths[0]), lengths[0]])
    steps = TimeGrid(
        torch.cat([begin[parents] + lead * lengths[parents], 0.1 + lengths.sum()[None]]),
        dt=share * lengths[parents],
    )
    fixed = ODEOptimizer(turning, ExplicitRungeKutta(DORMAND_PRINCE))
    end = fixed.solve(start(device), speed, steps).params
    (expected,) = torch.autograd.grad(outer(end, speed), lengths)
    torch.testing.assert_close(found.grads.dt, expected, rtol=1e-10, atol=1e-12)
    assert len(times) > 6
