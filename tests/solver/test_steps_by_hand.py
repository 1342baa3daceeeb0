"""Which steps are taken, against the same loop written again in plain numbers."""

from __future__ import annotations

import pytest
import torch
from support.recorder import Recorder
from support.steps_by_hand import StabilizedByHand, StepsByHand

from odeopt import Adaptive, Every, GradientFlow, ODEOptimizer, PIController, StabilizedRK, TimeGrid
from odeopt.engine.kernels import Kernels
from odeopt.solver import BOGACKI_SHAMPINE

TOGETHER = PIController(per_task=False)


def slope_with_a_wall(params, stiffness):
    """Down a slope, at the end of which two other directions become stiff all at once."""
    x, z, w = params.unbind(-1)
    wall = torch.sigmoid(40 * (x - 1))
    return -x + 0.5 * z**2 * (1 + stiffness * wall) + 0.5 * w**2 * (2 + 0.3 * stiffness * wall)


def bowl(params, stiffness):
    """As stiff as it is said in its first direction, and hardly in the last."""
    x, z, w = params.unbind(-1)
    return 0.5 * stiffness * x**2 + z**2 + 0.1 * torch.cos(w) + 0.05 * stiffness * (x * z) ** 2


def taken(loss, solver, grid, start, stiffness, tasks):
    """Times, final state and cost of the solve."""
    recorder = Recorder()
    opt = ODEOptimizer(GradientFlow(loss), solver, checkpoints=recorder)
    sol = opt.solve(start.clone().requires_grad_(), stiffness, grid, tasks=tasks)
    return torch.stack(recorder.times), sol


def by_hand(loss, solver, grid, start, stiffness):
    def velocity(k, t, y):
        del t
        return -torch.func.grad(loss)(y, stiffness[k])

    kind = StabilizedByHand if isinstance(solver, StabilizedRK) else StepsByHand
    times = grid.times.expand(len(stiffness), -1).tolist()
    return kind(solver, velocity, times, [start] * len(stiffness))


def check(loss, solver, grid, start, stiffness):
    """The steps of the solve of all tasks; what happened on the way."""
    hand = by_hand(loss, solver, grid, start, stiffness)
    times, sol = taken(loss, solver, grid, start, stiffness, tasks=True)
    torch.testing.assert_close(times, torch.tensor(hand.starts), rtol=1e-9, atol=1e-12)
    ends = torch.stack([task.y for task in hand.tasks])
    torch.testing.assert_close(sol.params.detach(), ends, rtol=1e-9, atol=1e-12)
    assert sol.stats.gradient_evaluations == hand.evaluations
    return hand.happened


EVENTS = {"accepted", "rejected", "one waits for another"}
STAGES = {*EVENTS, "made again with more stages"}

SOLVES = [
    (slope_with_a_wall, Adaptive(1e-3, 1e-5), (3.0, 30.0, 200.0), EVENTS),
    (slope_with_a_wall, Adaptive(1e-3, 1e-5, controller=TOGETHER), (3.0, 30.0, 100.0), set()),
    (
        slope_with_a_wall, Adaptive(1e-4, 1e-4, BOGACKI_SHAMPINE, first_step=1.0),
        (3.0, 30.0, 100.0), EVENTS,
    ),
    (slope_with_a_wall, StabilizedRK(1e-3, 1e-5), (1e3, 30.0), {*STAGES, "larger radius"}),
    (
        slope_with_a_wall, StabilizedRK(1e-2, 1e-2, max_stages=8), (100.0, 30.0, 1e3),
        {*STAGES, "shortened", "larger radius", "wider margin", "no more stages"},
    ),
    (
        slope_with_a_wall, StabilizedRK(0.1, 0.1, first_step=5.0), (1e3, 30.0, 1e4),
        {*STAGES, "larger radius", "wider margin"},
    ),
    (
        slope_with_a_wall, StabilizedRK(1e-2, 1e-2, controller=TOGETHER), (1e3, 30.0),
        {"rejected", "made again with more stages", "larger radius"},
    ),
    (
        slope_with_a_wall, StabilizedRK(1.0, 1.0, max_stages=4, first_step=3.0),
        (30.0, 10.0, 200.0), {"shortened"},
    ),
    (bowl, StabilizedRK(0.1, 0.1, first_step=5.0), (1e3, 30.0, 1e4), {"shortened"}),
]  # fmt: skip


@pytest.mark.parametrize("horizons", ["one horizon", "a horizon per task"])
@pytest.mark.parametrize(("loss", "solver", "stiffness", "expected"), SOLVES)
def test_the_steps_of_a_solve(loss, solver, stiffness, expected, horizons):
    """The same times, states and number of gradients; rejections and the rest did happen."""
    stiffness = torch.tensor(stiffness)
    grid = TimeGrid([0.0, 0.3, 1.5, 1.5, 2.0])
    if horizons == "a horizon per task":
        times = [[0.0, 1.0, 3.0], [0.0, 0.2, 0.2], [0.0, 0.0, 1.5]]
        grid = TimeGrid(torch.tensor(times[: len(stiffness)]))
    happened = check(loss, solver, grid, torch.tensor([0.0, 0.5, 0.3]), stiffness)
    if grid.tasks is None:
        assert expected <= happened


def test_the_kernel_of_a_step_is_made_once(monkeypatch):
    made, step = [], Kernels.step
    monkeypatch.setattr(Kernels, "step", lambda self: made.append(1) or step(self))
    opt = ODEOptimizer(GradientFlow(bowl), checkpoints=Every(1))
    opt.solve(torch.zeros(3), torch.tensor(1.0), TimeGrid.from_lr(0.1, 7))
    assert len(made) == 1
