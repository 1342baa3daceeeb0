"""Losses that are not functions of their arguments: random numbers and counters."""

from __future__ import annotations

import pytest
import torch
from support.safety import (
    GRID,
    both,
    by_value_and_grad,
    ones,
    quartic,
    total,
)

import odeopt
from odeopt import (
    Binomial,
    Density,
    Euler,
    Every,
    Graded,
    GradientFlow,
    ODEOptimizer,
    Safety,
    TimeGrid,
)


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
def test_a_change_is_refused_where_the_norm_of_the_state_stays_the_same(device, run):
    """The velocity turns round after the forward sweep, so that replayed states are mirrored."""
    steps, calls = 9, 0

    def turning(t, y, consts, hparams, batch):
        nonlocal calls
        calls += 1
        return (1.0 if calls <= steps else -1.0) * torch.ones_like(y) + 0 * y

    opt = ODEOptimizer(turning, Euler(), checkpoints=Binomial(1), safety=UNPROBED)
    with pytest.raises(odeopt.NondeterminismError, match=r"state before step \d+ is not"):
        run(opt, total, 0 * ones(device), ones(device), TimeGrid.from_lr(1.0, steps))


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
