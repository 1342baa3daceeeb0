"""What the mesh of a continuous adjoint is under which schedule."""

from __future__ import annotations

import pytest
import torch
from support.continuous import (
    METHODS,
    network,
    network_problem,
    outer_network,
)

from odeopt import (
    RK4,
    Binomial,
    ContinuousAdjoint,
    Density,
    DiscreteAdjoint,
    Every,
    Graded,
    GradientFlow,
    ModifiedEuler,
    ODEOptimizer,
    Online,
    TimeGrid,
)


def results(schedule, method, device, **grid):
    u0, batch, outer_batch, hparams = network_problem(device)
    adjoint = ContinuousAdjoint(METHODS[method][0])
    opt = ODEOptimizer(GradientFlow(network), RK4(), adjoint, schedule)
    outer = lambda params, batch, hparams, observed=(): sum(  # noqa: E731
        (outer_network(u, batch, hparams) for u in observed), outer_network(params, batch, hparams)
    )
    return opt.value_and_grad(outer)(u0, batch, TimeGrid.uniform(1.0, **grid), outer_batch, hparams)


def assert_bitwise(found, expected):
    assert torch.equal(found.value, expected.value)
    assert torch.equal(found.grads.params, expected.grads.params)
    assert torch.equal(found.grads.dt, expected.grads.dt)
    assert torch.equal(found.grads.hparams["decay"], expected.grads.hparams["decay"])


@pytest.mark.parametrize("slots", [1, 3, 40])
@pytest.mark.parametrize("method", METHODS)
def test_binomial_takes_the_whole_grid_for_its_mesh(method, slots, device):
    found = results(Binomial(slots), method, device, steps=12, observe=[0, 7, 12])
    assert_bitwise(found, results(Every(1), method, device, steps=12, observe=[0, 7, 12]))


@pytest.mark.parametrize("method", METHODS)
def test_online_takes_the_whole_grid_for_its_mesh(method, device):
    found = results(Online(4), method, device, steps=12, observe=[0, 7, 12])
    assert_bitwise(found, results(Every(1), method, device, steps=12, observe=[0, 7, 12]))


@pytest.mark.parametrize("method", METHODS)
def test_density_is_the_mesh_of_every(method, device):
    found = results(Density(5), method, device, steps=20)
    assert_bitwise(found, results(Every(4), method, device, steps=20))


@pytest.mark.parametrize("schedule", [Every(4), Density(5), Graded(5)])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_replayed_backward_on_kept_states(method, schedule, device):
    stats = results(schedule, method, device, steps=20).stats
    stages = METHODS[method][0].stages
    assert (stats.stored_states, stats.hvps) == (5, 5 * stages)
    if isinstance(schedule, Graded):  # measures first, then goes to the last state that it keeps
        assert 4 <= stats.replayed_steps < 20
    else:
        assert stats.replayed_steps == 0


@pytest.mark.parametrize("schedule", [Every(20), Every(7), Density(1)])
def test_observed_states_become_nodes_of_the_mesh(schedule, device):
    stats = results(schedule, "rk4", device, steps=20, observe=[0, 3, 12, 20]).stats
    nodes = {0, 3, 12} | ({7, 14} if isinstance(schedule, Every) and schedule.k == 7 else set())
    assert stats.hvps == 4 * len(nodes)
    assert stats.stored_states == len(nodes)


def test_a_mesh_of_observed_states_is_the_mesh_of_kept_ones(device):
    found = results(Density(1), "rk4", device, steps=20, observe=[5, 10, 15])
    assert_bitwise(found, results(Every(5), "rk4", device, steps=20, observe=[5, 10, 15]))


def test_graded_beats_uniform_where_the_trajectory_bends_early(device):
    def fast_at_first(t, state, consts, hparams, batch):
        return -batch * torch.tanh(state) * (1 + 30 * torch.exp(-25 * t))

    u0, rates = torch.tensor([2.0, -1.0, 1.5]), torch.tensor([1.0, 0.5, 1.5])
    u0, rates, c = u0.to(device), rates.to(device), torch.tensor([1.0, 1.0, 2.0], device=device)

    def gradient(adjoint, schedule):
        opt = ODEOptimizer(fast_at_first, RK4(), adjoint, schedule)
        grid = TimeGrid.uniform(2.0, 800)
        return opt.value_and_grad(lambda u, c: c @ torch.tanh(u))(u0, rates, grid, c).grads.params

    exact = gradient(DiscreteAdjoint(), Every(1))
    backward = ContinuousAdjoint(ModifiedEuler())
    uniform, graded = (gradient(backward, s) - exact for s in (Density(40), Graded(40)))
    assert float(graded.norm()) < 0.5 * float(uniform.norm())
