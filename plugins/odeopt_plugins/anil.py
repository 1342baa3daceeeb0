"""ANIL: almost no inner loop, which adapts the last layer only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, final

from torch import Tensor
from typing_extensions import Unpack, override

import odeopt
from odeopt.tools import tree
from odeopt.tools.arguments import call_loss
from odeopt.tools.types import PyTree
from odeopt_plugins.common import (
    Around,
    Loss,
    Settings,
    for_each_task,
    inner_loop,
    known_settings,
)


@final
@odeopt.METHODS.register("anil", example=lambda loss: ANIL(loss, head=("out", "shift"), lr=0.05))
class ANIL(Around):
    """MAML whose inner loop moves some parameters, the head; all are meta-learned.

    Cost: as MAML on the parameters of the head; the rest is differentiated once per step too.

    Args:
        loss: the training loss of all parameters, a dictionary.
        outer_loss: the validation loss; the training loss by default.
        head: the names of the adapted parameters.
        lr: the inner learning rate.
        steps: inner steps.
        **settings: see `odeopt_plugins.common.Settings`.

    References:
        Raghu et al. 2020, "Rapid Learning or Feature Reuse?".
    """

    @known_settings
    def __init__(
        self,
        loss: Loss,
        outer_loss: Loss | None = None,
        *,
        head: Sequence[str],
        lr: float = 0.01,
        steps: int = 5,
        **settings: Unpack[Settings],
    ) -> None:
        self._head = tuple(head)
        field = odeopt.GradientFlow(_of_parts(loss))
        grid = odeopt.TimeGrid.from_lr(lr, steps)
        outer = _of_parts(outer_loss or loss)
        self.inner = inner_loop(
            field, odeopt.Euler(), odeopt.DiscreteAdjoint(), grid, outer, **settings
        )

    @override
    def inside(self, params: Any, hparams: PyTree) -> tuple[PyTree, PyTree]:
        if not isinstance(params, dict) or not set(self._head) <= set(params) or not self._head:
            names = (
                sorted(cast("dict[str, Tensor]", params)) if isinstance(params, dict) else "none"
            )
            raise odeopt.InputError(
                f"head is {self._head}, but the parameters are a {type(params).__name__} with the"
                f" names {names}; expected a dictionary and some of its names."
            )
        params = cast("dict[str, PyTree]", params)
        head = {name: params[name] for name in self._head}
        body = {name: leaf for name, leaf in params.items() if name not in head}
        return head, {"body": body, "loss": hparams}

    @override
    def outside(self, params: PyTree, grads: odeopt.MetaGrads) -> odeopt.MetaGrads:
        merged = {**grads.hparams["body"], **grads.params}
        return odeopt.MetaGrads({name: merged[name] for name in params}, grads.hparams["loss"])

    @override
    def adapt(self, params: PyTree, train: PyTree, hparams: PyTree = None) -> PyTree:
        head = super().adapt(params, train, hparams)
        tasks = tree.tensors(head)[0].shape[0]
        return {**for_each_task(params, tasks), **head}


def _of_parts(loss: Loss) -> Loss:
    """The loss of head and body."""

    def of_parts(head: dict[str, PyTree], batch: PyTree, hparams: dict[str, Any]) -> Any:
        return call_loss(loss, hparams["loss"], {**hparams["body"], **head}, batch)

    return of_parts
