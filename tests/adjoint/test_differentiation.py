"""Both modes of the Hessian-vector product."""

from __future__ import annotations

import pytest
import torch
from support.discrete import (
    inner,
    outer,
    problem,
    requiring_grad,
)

import odeopt
from odeopt import (
    RK4,
    DiscreteAdjoint,
    Euler,
    ForwardOverReverse,
    GradientFlow,
    Midpoint,
    ODEOptimizer,
    ReverseMode,
    TimeGrid,
)


class Moving(odeopt.GradientField):
    """A potential that depends on the time and on the constants."""

    def init(self, params, hparams):
        return params, params

    def potential(self, t, state, consts, hparams, batch):
        u, c = state["w0"], consts["w0"]
        return inner(state, batch, hparams) * torch.cos(t) + (u * c).sin().sum() * (1 + t * t)


GRADIENT_FIELDS = {
    "flow": GradientFlow(inner, weight_decay=lambda hp: hp["scale"]["b"]),
    "regularised": odeopt.RegularizedFlow(
        inner, strength=lambda hp: hp["scale"]["a"], center=lambda hp: {"w0": hp["shift"]}
    ),
    "proximal": odeopt.RegularizedFlow(inner, strength=0.5, weight_decay=0.1),
    "moving": Moving(),
}


BOTH_MODES = {
    "discrete": DiscreteAdjoint,
    "truncated": lambda mode: odeopt.TruncatedAdjoint(2, mode),
    "continuous": lambda mode: odeopt.ContinuousAdjoint(RK4(), mode),
    "continuous-midpoint": lambda mode: odeopt.ContinuousAdjoint(Midpoint(), mode),
    "backsolve": lambda mode: odeopt.BacksolveAdjoint(RK4(), mode),
}


@pytest.mark.parametrize("adjoint", BOTH_MODES)
@pytest.mark.parametrize("field", GRADIENT_FIELDS)
@pytest.mark.parametrize("solver", [Euler(), RK4()])
def test_forward_over_reverse_equals_reverse_mode(field, solver, adjoint, reference, device):
    params, batch, outer_batch, hparams = problem([(4,)], device)
    batch = requiring_grad(batch)
    grid = TimeGrid.from_lr(torch.tensor([0.1, 0.02, 0.05, 0.1], device=device))
    found, expected = (
        ODEOptimizer(GRADIENT_FIELDS[field], solver, BOTH_MODES[adjoint](mode)).value_and_grad(
            outer
        )(params, batch, grid, outer_batch, hparams)
        for mode in (ForwardOverReverse(), ReverseMode())
    )
    for name in ("params", "hparams", "dt", "batch"):
        pair = getattr(found.grads, name), getattr(expected.grads, name)
        assert reference.relative(*pair) <= 1e-10, name
