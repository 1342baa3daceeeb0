"""What a `MetaLearner` is given, checked."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from odeopt.errors import InputError
from odeopt.keywords import keywords_of
from odeopt.meta.method import Method
from odeopt.module import ModuleLoss, from_module
from odeopt.registry import METHODS
from odeopt.types import Loss, PyTree


def resolve(
    method: Method | str, model: Any, loss: Loss | None, settings: dict[str, Any]
) -> tuple[Method, PyTree, PyTree]:
    """The method, the initial parameters and the model's own hparams."""
    params, hparams, own = _parts(model, loss)
    if isinstance(method, str):
        factory = METHODS.get(method)
        if own is None:
            raise InputError(
                f"method is the name {method!r}, but there is no loss: pass a module with"
                " loss=objective(model, batch), parameters with loss=loss(params, batch), or build"
                f" the method yourself, METHODS.get({method!r})(loss, ...)."
            )
        keywords_of(factory).check(f"method {method!r}", settings)
        return cast("Method", factory(own, **settings)), params, hparams
    if not isinstance(method, Method):  # pyright: ignore
        raise InputError(f"method is {method!r}; expected a Method or a name in METHODS.")
    if settings or loss is not None:
        raise InputError(
            f"settings {sorted(settings)} and loss are for a method given by name; this one is"
            f" {type(method).__name__}, which has its own."
        )
    return method, params, hparams


def _parts(model: Any, loss: Loss | None) -> tuple[PyTree, PyTree, Loss | None]:
    """Parameters, hparams and the loss of parameters, where there is one."""
    if isinstance(model, nn.Module):
        if loss is None:
            raise InputError(
                "model is a module: pass loss=objective, called as objective(model, batch), or the"
                " parameters that your Method moves."
            )
        model, loss = from_module(model, loss), None
    if isinstance(model, ModuleLoss):
        if loss is not None:
            raise InputError("model is a ModuleLoss, which has a loss: leave loss out.")
        return model.params, model.hparams, model.loss
    return model, None, loss


def make_optimizer(optimizer: Any, leaves: list[Tensor]) -> Optimizer:
    """The outer optimiser that a factory makes.

    Raises:
        InputError: if it is no factory, such as an optimiser that is made already.
    """
    found = optimizer(leaves) if callable(optimizer) else optimizer
    if not callable(optimizer) or not isinstance(found, Optimizer):
        said = "returned" if callable(optimizer) else "is"
        raise InputError(
            f"optimizer {said} a {type(found).__name__}; expected a function that makes a"
            " torch.optim.Optimizer from a list of tensors, which are copies of those given, e.g."
            " torch.optim.Adam or lambda leaves: torch.optim.SGD(leaves, lr=0.1)."
        )
    return found


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
