"""Calling the user's functions, and checking the user's numbers.

Losses take hparams if and only if there are some.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from odeopt.errors import CapturedTensorError, InputError
from odeopt.tools.shown import shown
from odeopt.tools.types import PyTree

Selector = float | int | Tensor | Callable[[PyTree], Any]
"""A number, or a function that picks a value out of hparams, e.g. `lambda hp: hp["mu"]`."""


_noted: ContextVar[list[Any] | None] = ContextVar("values of losses", default=None)


@contextmanager
def noting_losses() -> Generator[list[Any]]:
    """Collect what losses return inside the block."""
    values: list[Any] = []
    token = _noted.set(values)
    try:
        yield values
    finally:
        _noted.reset(token)


def call_loss(
    loss: Callable[..., Any], hparams: PyTree, *args: Any, what: str = "loss",
    of: str = "params", **keywords: Any,
) -> Any:  # fmt: skip
    """`loss(*args)` when hparams is None, `loss(*args, hparams)` otherwise.

    Raises:
        InputError: if the function does not take that many arguments.
    """
    positional = args if hparams is None else (*args, hparams)
    try:
        value = loss(*positional, **keywords)
    except TypeError as error:
        module = loss if isinstance(loss, nn.Module) else None
        if takes(loss if module is None else module.forward, positional, keywords):
            raise
        names = f"({of}, batch)" if hparams is None else f"({of}, batch, hparams)"
        extra = f" and the keywords {sorted(keywords)}" if keywords else ""
        raise InputError(
            f"{what} cannot be called with {names}{extra}: {error}. It is called with hparams"
            f" exactly when hparams is not None.{'' if module is None else _MODULE}"
        ) from error
    noted = _noted.get()
    if noted is not None:
        noted.append(value)
    return value


_MODULE = (
    " It is a module: odeopt.from_module(module, objective) makes a loss of its parameters, and"
    " odeopt.RecordedLoop takes a module as it is."
)


def _returned(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)}, {value.dtype}"
    return shown(value)


def check_scalar(value: Any, what: str) -> Tensor:
    """The value, if it is a scalar tensor.

    Raises:
        InputError: if it is anything else.
    """
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        raise InputError(
            f"{what} returned {_returned(value)}; expected a floating-point scalar tensor."
        )
    return value.reshape(())


def check_vector(value: Any, what: str) -> Tensor:
    """The value, if it is a tensor of shape [n], n at least 1.

    Raises:
        InputError: if it is anything else.
    """
    if (
        not isinstance(value, Tensor) or value.ndim != 1 or not len(value)
        or not value.is_floating_point()
    ):  # fmt: skip
        raise InputError(
            f"{what} returned {_returned(value)}; expected a floating-point tensor of shape"
            " [losses], since many=True."
        )
    return value


def check_selector(value: Selector, what: str) -> Selector:
    """The selector, if it is a number or a function.

    Raises:
        CapturedTensorError: if it is a tensor that requires grad: its gradient would be lost.
        InputError: if it is anything else.
    """
    if not (callable(value) or isinstance(value, float | int | Tensor)):  # pyright: ignore
        raise InputError(
            f"{what} is {shown(value)}; expected a number, or a selector such as"
            f" lambda hparams: hparams['{what}']."
        )
    if isinstance(value, Tensor) and value.requires_grad:
        raise CapturedTensorError(
            f"{what} is a tensor that requires grad: its gradient would be lost. Put it into"
            f" hparams and pass a selector, e.g. {what}=lambda hparams: hparams['{what}']."
        )
    return value


def select(selector: Selector, hparams: PyTree, what: str) -> Any:
    """The number itself, or what the selector picks out of hparams."""
    if not callable(selector):
        return selector
    if hparams is None:
        raise InputError(f"{what} is a selector, but hparams is None: pass hparams to the call.")
    return selector(hparams)


def check_integer(value: object, what: str, at_least: int = 1) -> int:
    """The value, if it is an integer that is large enough.

    Raises:
        InputError: if it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InputError(f"{what} is {shown(value)}; expected an integer of at least {at_least}.")
    return value


def check_positive_number(value: object, what: str, or_none: bool = False) -> None:
    """Raise unless the value is a positive number, which may be infinite; None passes if allowed.

    Raises:
        InputError: if it is anything else.
    """
    if or_none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        expected = "a positive number or None" if or_none else "a positive number"
        raise InputError(f"{what} is {shown(value)}; expected {expected}.")


def is_positive(value: Any) -> bool:
    """Whether a value is a number above zero, or a tensor of one."""
    try:
        return bool(value > 0)
    except (TypeError, RuntimeError, ValueError):  # text, or a tensor of several
        return False


def takes(fn: Callable[..., Any], args: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    """Whether a function can be called with these arguments, as far as its signature says."""
    try:
        inspect.signature(fn).bind(*args, **keywords)
    except TypeError:
        return False
    except ValueError:  # no signature to look at
        return True
    return True
