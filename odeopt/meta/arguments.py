"""What a `MetaLearner` is given, checked."""

from __future__ import annotations

from typing import Any, cast

from odeopt.errors import InputError
from odeopt.meta.method import Method
from odeopt.module import ModuleLoss
from odeopt.registry import METHODS
from odeopt.types import PyTree


def resolve(
    method: Method | str, model: ModuleLoss | PyTree, settings: dict[str, Any]
) -> tuple[Method, PyTree, PyTree]:
    """The method, the initial parameters and the model's own hparams."""
    if isinstance(model, ModuleLoss):
        params, hparams, loss = model.params, model.hparams, model.loss
    else:
        params, hparams, loss = model, None, None
    if isinstance(method, str):
        factory = METHODS.get(method)
        if loss is None:
            raise InputError(
                f"method is the name {method!r}, but model has no loss: pass"
                " from_module(module, objective), or ModuleLoss(params, None, loss), or build the"
                f" method yourself, METHODS.get({method!r})(loss, ...)."
            )
        return cast("Method", factory(loss, **settings)), params, hparams
    if not isinstance(method, Method):  # pyright: ignore
        raise InputError(f"method is {method!r}; expected a Method or a name in METHODS.")
    if settings:
        raise InputError(f"settings {sorted(settings)} are for a method given by name.")
    return method, params, hparams


def check_settings(
    tasks: object, clip: float | None, validate_every: object, checkpoint_every: object
) -> None:
    """Raise `InputError` on a setting that cannot be used."""
    if not callable(tasks):
        raise InputError(f"tasks is {tasks!r}; expected tasks(k) -> TaskBatch, e.g. a TaskPool.")
    if clip is not None and not clip > 0:
        raise InputError(f"clip is {clip!r}; expected a positive number or None.")
    counts = {"validate_every": validate_every, "checkpoint_every": checkpoint_every}
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{name} is {count!r}; expected a positive integer.")
