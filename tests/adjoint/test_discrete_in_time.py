"""The exact adjoint of adaptive steps, of fields that depend on time, and of the grid."""

from __future__ import annotations

import pytest
import torch
from support.discrete import (
    EXACT,
    FOR_ANY_FIELD,
    assert_same_as_autograd,
    autograd,
    end,
    inner,
    outer,
    problem,
    requiring_grad,
)
from torch.utils import _pytree as pytree

import odeopt
from odeopt import (
    Adaptive,
    Binomial,
    Density,
    Every,
    Graded,
    GradientFlow,
    Midpoint,
    ODEOptimizer,
    TimeGrid,
)
from odeopt.checkpoint import Advance, CheckpointSchedule, Store


class Recorder(CheckpointSchedule):
    """Every state, and the times that the forward sweep went through."""

    is_mesh = True
    needs_length = False

    def __init__(self):
        self.times = []

    def forward(self, n):
        del n
        index = 0
        while True:
            progress = yield Store(index)
            self.times.append(progress.t)
            yield Advance(index, index + 1)
            index += 1

    def backward(self, n, kept):
        return Every(1).backward(n, kept)


@pytest.mark.parametrize("schedule", [Every(1), Every(3), Density(3), Graded(3), Binomial(2)])
@pytest.mark.parametrize("horizons", [[1.5], [0.2, 0.9, 0.4]])
def test_adaptive_equals_autograd_through_its_accepted_steps(horizons, schedule, reference, device):
    params, batch, outer_batch, hparams = problem([(3,), ()], device)
    grid = TimeGrid.from_lr(torch.tensor(horizons, device=device))
    solver, recorder = Adaptive(1e-5, 1e-7), Recorder()
    ODEOptimizer(GradientFlow(inner), solver, checkpoints=recorder).solve(
        requiring_grad(params), batch, grid, hparams
    )
    times = torch.stack([*recorder.times, grid.times[-1]])
    assert len(times) > len(horizons) + 1
    parents = torch.searchsorted(grid.times, times[:-1] + 1e-9) - 1
    share = times.diff() / grid.dt[parents]

    opt = ODEOptimizer(GradientFlow(inner), solver, checkpoints=schedule)
    res = opt.value_and_grad(outer)(params, batch, grid, outer_batch, hparams)

    def objective(params, batch, hparams, lengths):
        velocity = reference.descent(inner, batch, hparams)
        dts = share * lengths[parents]
        return outer(reference.states("dopri5", velocity, params, dts)[-1], outer_batch, hparams)

    expected = autograd(objective, params, batch, hparams, grid.dt)
    assert_same_as_autograd(reference, res, expected)


def spiral(t, state, consts, hparams, batch):
    """Not a gradient field, and different at each time."""
    del consts
    u, v = state["u"], state["v"]
    wave = torch.sin(hparams["rate"] * t + 1)
    return {"u": torch.tanh(v) * wave - u, "v": -u.sum() * t + batch * torch.cos(v) * hparams["b"]}


def spiral_problem(device):
    params = {"u": torch.tensor([0.3, -0.2, 0.9]), "v": torch.tensor([0.1, 1.0, -0.4])}
    hparams = {"rate": torch.tensor(1.3), "b": torch.tensor([0.7, 0.2, 0.4]).mean()}
    lr = torch.tensor([0.1, 0.05, 0.0, 0.2, 0.15])
    return pytree.tree_map(
        lambda leaf: leaf.to(device), (params, torch.tensor(0.8), torch.tensor(1.1), hparams, lr)
    )


@pytest.mark.parametrize("schedule", [Every(1), Every(2), Binomial(2)])
@pytest.mark.parametrize("method", FOR_ANY_FIELD)
def test_a_velocity_that_depends_on_time_equals_autograd(method, schedule, reference, device):
    params, batch, outer_batch, hparams, lr = spiral_problem(device)
    batch.requires_grad_()
    opt = ODEOptimizer(spiral, FOR_ANY_FIELD[method], checkpoints=schedule)
    res = opt.value_and_grad(end)(params, batch, TimeGrid.from_lr(lr), outer_batch, hparams)

    def objective(params, batch, hparams, dts):
        velocity = lambda t, y: spiral(t, y, (), hparams, batch)  # noqa: E731
        return end(reference.states(method, velocity, params, dts)[-1], outer_batch, hparams)

    assert_same_as_autograd(reference, res, autograd(objective, params, batch, hparams, lr))


@pytest.mark.parametrize("schedule", [Every(1), Binomial(2)])
def test_adaptive_steps_move_with_their_intervals(schedule, reference, device):
    """Each accepted step keeps its share of its interval, and begins later when others grow."""
    params, batch, outer_batch, hparams, _ = spiral_problem(device)
    grid = TimeGrid.from_lr(torch.tensor([0.7, 0.4, 1.3], device=device))
    solver, recorder = Adaptive(1e-4, 1e-6), Recorder()
    recorded = ODEOptimizer(spiral, solver, checkpoints=recorder)
    recorded.solve(requiring_grad(params), batch, grid, hparams)
    times = torch.stack([*recorder.times, grid.times[-1]])
    parents = torch.searchsorted(grid.times, times[:-1] + 1e-9) - 1
    share = times.diff() / grid.dt[parents]
    assert len(share) > 5
    opt = ODEOptimizer(spiral, solver, checkpoints=schedule)
    res = opt.value_and_grad(end)(params, batch, grid, outer_batch, hparams)

    def objective(params, hparams, lengths):
        velocity = lambda t, y: spiral(t, y, (), hparams, batch)  # noqa: E731
        states = reference.states("dopri5", velocity, params, share * lengths[parents])
        return end(states[-1], outer_batch, hparams)

    _, expected = autograd(objective, params, hparams, grid.dt)
    found = (res.grads.params, res.grads.hparams, res.grads.dt)
    assert reference.relative(found, expected) <= EXACT


@pytest.mark.parametrize("method", FOR_ANY_FIELD)
def test_gradient_of_the_times_of_a_grid(method, reference, device):
    """Each inner time ends one step and begins the next."""
    params, batch, outer_batch, hparams, lr = spiral_problem(device)
    times = torch.cat([lr.new_tensor([0.4]), 0.4 + lr.cumsum(0)]).requires_grad_()
    opt = ODEOptimizer(spiral, FOR_ANY_FIELD[method])
    sol = opt.solve(params, batch, TimeGrid(times), hparams)
    (found,) = torch.autograd.grad(end(sol.params, outer_batch, hparams), times)

    def objective(times):
        y = params
        for t, dt in zip(times[:-1], times.diff(), strict=True):
            velocity = lambda s, u: spiral(s, u, (), hparams, batch)  # noqa: E731
            y = reference.step(method, velocity, t, dt, y)
        return end(y, outer_batch, hparams)

    _, (expected,) = autograd(objective, times)
    assert reference.relative(found, expected) <= EXACT


@pytest.mark.parametrize(
    "field",
    [
        odeopt.RegularizedFlow(inner, strength=lambda hp: hp["scale"]["a"]),
        odeopt.RegularizedFlow(inner, strength=0.3, center=lambda hp: {"w0": hp["shift"]}),
        GradientFlow(inner, weight_decay=lambda hp: hp["scale"]["b"]),
    ],
    ids=["proximal", "centre", "decay"],
)
@pytest.mark.parametrize("schedule", [Every(1), Binomial(2)])
def test_terms_of_the_field_equal_autograd(field, schedule, reference, device):
    params, batch, outer_batch, hparams = problem([(4,)], device)
    lr = torch.tensor([0.1, 0.2, 0.15, 0.1, 0.1], device=device)
    opt = ODEOptimizer(field, Midpoint(), checkpoints=schedule)
    res = opt.value_and_grad(outer)(params, batch, TimeGrid.from_lr(lr), outer_batch, hparams)
    decays, centred = field._objective.weight_decay != 0.0, getattr(field, "_center", None)

    def objective(params, batch, hparams, dts):
        def whole(u):
            value = inner(u, batch, hparams)
            if decays:
                return value + hparams["scale"]["b"] / 2 * u["w0"].square().sum()
            if centred:
                return value + 0.15 * (u["w0"] - hparams["shift"]).square().sum()
            return value + hparams["scale"]["a"] / 2 * (u["w0"] - params["w0"]).square().sum()

        velocity = reference.descent(whole)
        return outer(reference.states("midpoint", velocity, params, dts)[-1], outer_batch, hparams)

    assert_same_as_autograd(reference, res, autograd(objective, params, batch, hparams, lr))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("schedule", [Every(1), Binomial(3)])
def test_equals_higher(schedule, reference, device):
    higher = pytest.importorskip("higher")
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).to(
        device
    )
    x, y = torch.randn(8, 3, device=device), torch.randn(8, 1, device=device)
    x_val, y_val = torch.randn(6, 3, device=device), torch.randn(6, 1, device=device)

    def mse(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    given = odeopt.from_module(model, mse)
    opt = ODEOptimizer(GradientFlow(given.loss), checkpoints=schedule)
    grid = TimeGrid.from_lr(0.1, 20)
    res = opt.value_and_grad(given.loss)(given.params, (x, y), grid, (x_val, y_val))

    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with higher.innerloop_ctx(model, sgd, copy_initial_weights=False) as (copy, inner_opt):
        for _ in range(20):
            inner_opt.step(mse(copy, (x, y)))
        value = mse(copy, (x_val, y_val))
        value.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    assert reference.relative(res.value, value.detach()) <= EXACT
    assert reference.relative(res.grads.params, expected) <= EXACT
