"""ANIL: almost no inner loop, which adapts the last layer only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, final

from torch import Tensor
from typing_extensions import Unpack, override

import odeopt
from odeopt.outer.method import TaskData
from odeopt.tools import tree
from odeopt.tools.arguments import call_loss
from odeopt.tools.types import PyTree
from odeopt_plugins.common import Loss, Settings, inner_loop, known_settings


@final
@odeopt.METHODS.register("anil", example=lambda loss: ANIL(loss, head=("out", "shift"), lr=0.05))
class ANIL(odeopt.Method):
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
        self._inner = inner_loop(
            field, odeopt.Euler(), odeopt.DiscreteAdjoint(), None, grid, outer, **settings
        )

    @override
    def __call__(
        self, params: PyTree, task_batch: TaskData, hparams: PyTree = None
    ) -> odeopt.MetaGradient:
        head, body = self._split(params)
        found = self._inner(head, task_batch, {"body": body, "loss": hparams})
        merged = {**found.grads.hparams["body"], **found.grads.params}
        grads = odeopt.MetaGrads(
            {name: merged[name] for name in params}, found.grads.hparams["loss"]
        )
        return odeopt.MetaGradient(found.value, grads, found.stats, found.values, found.status)

    @override
    def adapt(self, params: PyTree, train: PyTree, hparams: PyTree = None) -> PyTree:
        head, body = self._split(params)
        adapted = self._inner.adapt(head, train, {"body": body, "loss": hparams})
        tasks = tree.tensors(adapted)[0].shape[0]
        body = tree.map_tensors(lambda leaf: leaf.detach().expand(tasks, *leaf.shape), body)
        return {name: adapted[name] if name in adapted else body[name] for name in params}

    @override
    def evaluate(self, params: PyTree, task_batch: TaskData, hparams: PyTree = None) -> Tensor:
        head, body = self._split(params)
        return self._inner.evaluate(head, task_batch, {"body": body, "loss": hparams})

    def _split(self, params: Any) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
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
        return head, {name: leaf for name, leaf in params.items() if name not in head}


def _of_parts(loss: Loss) -> Loss:
    """The loss of head and body."""

    def of_parts(head: dict[str, PyTree], batch: PyTree, hparams: dict[str, Any]) -> Any:
        return call_loss(loss, hparams["loss"], {**hparams["body"], **head}, batch)

    return of_parts
