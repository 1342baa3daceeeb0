"""A model with kinks has another flow than its adjoint sees, which is said once."""

import warnings

import pytest
import torch
from torch.nn import functional

from odeopt import (
    RK4,
    SGD,
    ContinuousAdjoint,
    FirstOrderAdjoint,
    GradientFlow,
    ODEOptimizer,
    OdeoptWarning,
    Safety,
    TimeGrid,
)

GRID = TimeGrid.uniform(0.4, 4)


def network(activation):
    def loss(params, batch):
        return (activation(params["a"] * batch) @ params["b"]).square().mean()

    return loss


def run(activation, device, make=None):
    loss = network(activation)
    draws = torch.randn(3, 3, device=device)
    params = {"a": draws[0], "b": draws[1]}
    flow = GradientFlow(loss)
    opt = ODEOptimizer(flow, RK4()) if make is None else make(loss, flow)
    return opt.value_and_grad(loss)(params, draws[2], GRID, draws[2])


def warnings_of(activation, device, make=None):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run(activation, device, make)
    return [str(one.message) for one in found]


KINKED = {
    "ReLU": torch.relu,
    "leaky ReLU": functional.leaky_relu,
    "hardtanh or ReLU6": functional.relu6,
    "abs": torch.abs,
    "max pooling": lambda x: functional.max_pool2d(x.reshape(1, 1, 3), (1, 3)).reshape(1).expand(3),
}


@pytest.mark.parametrize("name", KINKED)
def test_kinks_are_named(device, name):
    with pytest.warns(OdeoptWarning, match=name):
        run(KINKED[name], device)


@pytest.mark.parametrize(
    "activation",
    [torch.tanh, functional.gelu, functional.softplus, functional.silu, functional.elu],
)
def test_smooth_models_are_not_spoken_of(device, activation):
    assert warnings_of(activation, device) == []


def test_a_stable_softmax_is_no_kink(device):
    softmax = lambda x: functional.log_softmax(x - x.max(), -1).clamp(min=-50.0)  # noqa: E731
    assert warnings_of(softmax, device) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda loss, flow: ODEOptimizer(flow),
        lambda loss, flow: ODEOptimizer(SGD(loss)),
        lambda loss, flow: ODEOptimizer(flow, RK4(), FirstOrderAdjoint()),
        lambda loss, flow: ODEOptimizer(flow, RK4(), safety=Safety(probe=False)),
    ],
)
def test_gradient_descent_may_have_kinks(device, make):
    assert warnings_of(torch.relu, device, make) == []


def test_an_interpolating_adjoint_after_euler_follows_the_flow(device):
    def make(loss, flow):
        return ODEOptimizer(flow, adjoint=ContinuousAdjoint(RK4()), safety=Safety(defect=None))

    with pytest.warns(OdeoptWarning, match="kinks"):
        run(torch.relu, device, make)


def test_tasks_and_solve_warn_too(device):
    loss = network(torch.relu)
    params = {"a": torch.randn(3, device=device), "b": torch.randn(3, device=device)}
    batch = torch.randn(2, 3, device=device)
    with pytest.warns(OdeoptWarning, match="ReLU"):
        ODEOptimizer(GradientFlow(loss), RK4()).solve(params, batch, GRID, tasks=True)
