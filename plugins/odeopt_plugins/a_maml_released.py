"""A-MAML as its authors' released code computes it: kept for comparison, not for use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack, override

import odeopt
from odeopt.adjoint import Interval, LocalAdjoint, Pulled
from odeopt.adjoint.base import Cost, Diagnostics
from odeopt.solver import Solver
from odeopt.solver.base import Stepping
from odeopt.solver.dynamics import add_thetas, scale_theta
from odeopt.tools import tree
from odeopt.tools.arguments import call_loss
from odeopt.tools.types import PyTree
from odeopt_plugins.common import Around, Loss, Settings, inner_loop, known_settings


class ReleasedEuler(LocalAdjoint):
    r"""Explicit Euler backward, with one step too many at the initial state.

    $\lambda \leftarrow \lambda - h\nabla^2\Phi(u_j)\lambda$ for $j = N, ..., 0$ (N + 1 steps for N
    intervals), and a rectangle rule over all N + 2 values of $\lambda$ for the gradient w.r.t. the
    centre of the proximal term.
    """

    replays = False
    consistent = False

    @override
    def pull(self, solver: Solver, stepping: Stepping, interval: Interval, lam: Tensor) -> Pulled:
        t, dt, y0, y1 = interval
        end, start = stepping.linearize(t + dt, y1), stepping.linearize(t, y0)
        pulled = end.pullback(lam)
        arrived = lam + dt * pulled.y
        once_more = start.pullback(arrived)
        beyond = arrived + dt * once_more.y
        last = start.pullback(beyond)
        is_first = (t == 0).to(dt.dtype)
        theta = add_thetas(
            [scale_theta(pulled.theta, dt)]
            + [scale_theta(extra.theta, dt * is_first) for extra in (once_more, last)]
        )
        zero = torch.zeros_like(dt)
        return Pulled(
            torch.where(t == 0, beyond, arrived), zero, zero, theta, Diagnostics(zero, zero)
        )

    @override
    def cost(self, solver: Solver) -> Cost:
        return Cost(gradients=0, hvps=3)


class ReleasedAMAML(Around):
    """See `a_maml_released`."""

    def __init__(self, inner: odeopt.InnerLoop) -> None:
        self.inner = inner

    @override
    def inside(self, params: PyTree, hparams: PyTree) -> tuple[PyTree, PyTree]:
        return params, {"center": params, "loss": hparams}

    @override
    def outside(self, params: PyTree, grads: odeopt.MetaGrads) -> odeopt.MetaGrads:
        both = tree.pytree.tree_map(torch.add, grads.params, grads.hparams["center"])
        return odeopt.MetaGrads(both, grads.hparams["loss"])


@known_settings
def a_maml_released(
    loss: Loss,
    outer_loss: Loss | None = None,
    *,
    lr: float = 0.01,
    steps: int = 100,
    strength: float = 1.0,
    **settings: Unpack[Settings],
) -> ReleasedAMAML:
    r"""The authors' released code, which differs from the paper's algorithm in four ways.

    A proximal term $\tfrac{\mu}{2}\lVert u - \theta\rVert^2$ is in the inner and in the validation
    loss; the forward solver is classical Runge-Kutta (the 3/8 rule) with one step per state; the
    backward one is Euler with one step too many; the integral w.r.t. the centre is a rectangle
    rule with two points too many. The gradient is of first order only. Kept for comparison. Cost:
    four gradients per step and three Hessian-vector products (the original needs one).

    Args:
        loss: the training loss.
        outer_loss: the validation loss; the training loss by default.
        lr: the step h.
        steps: N.
        strength: $\mu$; 1 in the released scripts.
        **settings: see `odeopt_plugins.common.Settings`.

    References:
        Li et al. 2023, "Meta-Learning with Adjoint Methods", the released code.
    """
    validate = outer_loss or loss

    def inner(params: PyTree, batch: PyTree, hparams: Any) -> Tensor:
        return call_loss(loss, hparams["loss"], params, batch)

    def outer(params: PyTree, batch: PyTree, hparams: Any) -> Tensor:
        value = call_loss(validate, hparams["loss"], params, batch, what="outer_loss")
        pairs = zip(tree.tensors(params), tree.tensors(hparams["center"]), strict=True)
        distance = torch.stack([(u - c).square().sum() for u, c in pairs]).sum()
        return value + 0.5 * strength * distance

    field = odeopt.RegularizedFlow(inner, strength, center=lambda hparams: hparams["center"])
    grid = odeopt.TimeGrid.from_lr(lr, steps)
    solver = odeopt.Torchdiffeq("rk4")
    return ReleasedAMAML(inner_loop(field, solver, ReleasedEuler(), grid, outer, **settings))


odeopt.METHODS.register(
    "a-maml-released", example=lambda loss: a_maml_released(loss, lr=0.05, steps=20)
)(a_maml_released)
