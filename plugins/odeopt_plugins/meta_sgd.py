"""Meta-SGD: MAML with a learned learning rate for each parameter."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import Unpack, override

import odeopt
from odeopt.tools import tree
from odeopt.tools.arguments import call_loss
from odeopt.tools.types import PyTree
from odeopt_plugins.common import Around, Loss, Settings, inner_loop, known_settings


@final
@odeopt.METHODS.register("meta-sgd", example=lambda loss: MetaSGD(loss, lr=0.05))
class MetaSGD(Around):
    r"""$u \leftarrow u - \alpha \odot \nabla L(u)$, with the gradient w.r.t. $\theta$ and $\alpha$.

    `hparams` is `{"lr": like params, "loss": hparams of the loss}`, as `init_hparams` makes it.
    Cost: as MAML.

    Args:
        loss: the training loss.
        outer_loss: the validation loss; the training loss by default.
        lr: the learning rates to start with.
        steps: inner steps.
        **settings: see `odeopt_plugins.common.Settings`.

    References:
        Li et al. 2017, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning".
    """

    @known_settings
    def __init__(
        self,
        loss: Loss,
        outer_loss: Loss | None = None,
        *,
        lr: float = 0.01,
        steps: int = 1,
        **settings: Unpack[Settings],
    ) -> None:
        self._lr = lr
        grid = odeopt.TimeGrid.from_lr(1.0, steps)
        outer = _without_rates(outer_loss or loss)
        self.inner = inner_loop(
            _Scaled(loss), odeopt.Euler(), odeopt.DiscreteAdjoint(), grid, outer, **settings
        )

    @override
    def init_hparams(self, params: PyTree, hparams: PyTree = None) -> PyTree:
        rates = tree.map_tensors(lambda leaf: torch.full_like(leaf, self._lr), params)
        return {"lr": rates, "loss": hparams}

    @override
    def inside(self, params: PyTree, hparams: PyTree) -> tuple[PyTree, PyTree]:
        if not isinstance(hparams, dict) or set(hparams) != {"lr", "loss"}:
            raise odeopt.InputError(
                "Meta-SGD learns its learning rates: pass hparams ="
                " method.init_hparams(params, hparams_of_the_loss)."
            )
        return params, hparams


class _Scaled(odeopt.Field):
    """Gradient flow with a rate for each parameter."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    @override
    def velocity(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: Any, batch: PyTree
    ) -> PyTree:
        gradient = torch.func.grad(lambda u: call_loss(self._loss, hparams["loss"], u, batch))(
            state
        )
        return tree.pytree.tree_map(lambda rate, g: -rate * g, hparams["lr"], gradient)


def _without_rates(loss: Loss) -> Loss:
    def outer(params: PyTree, batch: PyTree, hparams: dict[str, Any]) -> Any:
        return call_loss(loss, hparams["loss"], params, batch, what="outer_loss")

    return outer
