"""The method: both of them, with a learned softening."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import torch
from typing_extensions import override

import odeopt
from odeopt.tools import tree
from odeopt.tools.arguments import call_loss
from odeopt.tools.types import PyTree
from odeopt_signflow.adjoint import DampedAdjoint
from odeopt_signflow.field import SignFlow

Loss = Callable[..., Any]


@final
@odeopt.METHODS.register("damped-sign-maml", example=lambda loss: DampedSignMAML(loss, lr=0.02))
class DampedSignMAML(odeopt.InnerLoop):
    r"""$u \leftarrow u - \eta\, g / \sqrt{g^2 + \varepsilon^2}$, with the adjoint `DampedAdjoint`.

    The initialisation and the softening $\varepsilon$ are learned. `hparams` is
    `{"log_softening": scalar, "loss": hparams of the loss}`, as `init_hparams` makes it; by its
    logarithm the softening stays positive.

    Cost: one gradient and one Hessian-vector product per step. Memory: the states of all steps, or
    fewer with other checkpoints, and the graph of one step.

    Args:
        loss: the training loss.
        outer_loss: the validation loss; the training loss by default.
        lr: $\eta$, the most that an entry moves in a step.
        steps: inner steps.
        softening: the $\varepsilon$ to start with.
        gamma: see `DampedAdjoint`; 1 for the exact gradient.
        checkpoints: which states are kept, e.g. `odeopt.Binomial(20)`; by default all if memory
            allows.
    """

    def __init__(
        self,
        loss: Loss,
        outer_loss: Loss | None = None,
        *,
        lr: float = 0.01,
        steps: int = 5,
        softening: float = 0.1,
        gamma: float = 0.9,
        checkpoints: Any = None,
    ) -> None:
        if not softening > 0:
            raise odeopt.InputError(f"softening is {softening!r}; expected a positive number.")
        self._log_softening = math.log(softening)
        field = SignFlow(_inner(loss, "loss"), lambda hparams: hparams["log_softening"].exp())
        opt = odeopt.ODEOptimizer(field, odeopt.Euler(), DampedAdjoint(gamma), checkpoints)
        outer = _inner(outer_loss or loss, "outer_loss")
        super().__init__(opt, outer, odeopt.TimeGrid.from_lr(lr, steps))

    @override
    def init_hparams(self, params: PyTree, hparams: PyTree = None) -> PyTree:
        like = tree.tensors(params)[0]
        return {"log_softening": like.new_full((), self._log_softening), "loss": hparams}


def _inner(loss: Loss, what: str) -> Loss:
    """The loss, given its own part of the hparams."""

    def call(params: PyTree, batch: PyTree, hparams: PyTree = None) -> torch.Tensor:
        if not isinstance(hparams, dict) or set(hparams) != {"log_softening", "loss"}:
            raise odeopt.InputError(
                "damped-sign-maml learns its softening: pass hparams ="
                " method.init_hparams(params, hparams_of_the_loss)."
            )
        return call_loss(loss, hparams["loss"], params, batch, what=what)

    return call
