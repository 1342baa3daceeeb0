"""Evaluating what users wrote, and what a loss does that would spoil a derivative."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Self, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from odeopt.adjoint.linearize import Differentiation
from odeopt.errors import CapturedTensorError, CompatibilityError, InputError, OdeoptWarning
from odeopt.inner.attention import PLAIN_ATTENTION
from odeopt.tools import tree
from odeopt.tools.arguments import noting_losses
from odeopt.tools.autodiff import depends_on_others, noting_inputs
from odeopt.tools.captured import check_not_scripted
from odeopt.tools.refusals import explain
from odeopt.tools.transforms import (
    any_requires_grad,
    captures,
    inside_transform,
    requires_grad,
    versions,
)

KINKED = {
    "relu": "ReLU", "relu_": "ReLU", "threshold": "threshold", "leaky_relu": "leaky ReLU",
    "leaky_relu_": "leaky ReLU", "_prelu_kernel": "PReLU", "rrelu_with_noise": "RReLU",
    "hardtanh": "hardtanh or ReLU6", "hardtanh_": "hardtanh or ReLU6", "hardsigmoid": "hardsigmoid",
    "hardswish": "hardswish", "hardshrink": "hardshrink", "softshrink": "softshrink", "abs": "abs",
    "max_pool2d_with_indices": "max pooling", "max_pool3d_with_indices": "max pooling",
    "max_pool2d": "max pooling", "adaptive_max_pool2d": "max pooling",
}  # fmt: skip
"""Operations of ATen whose first derivative jumps, and what they are called. Not among them are
clamp and max, with which logarithms and softmax are kept finite."""

_LOW = (torch.float16, torch.bfloat16)


@contextmanager
def evaluation() -> Generator[None]:
    """A block in which attention is written out, and what torch refuses is explained.

    Errors of other kinds, those that the user's own code raises among them, pass unchanged.

    Raises:
        CompatibilityError: if torch cannot differentiate, or batch, what is done in it.
    """
    with PLAIN_ATTENTION:
        try:
            yield
        except RuntimeError as error:
            explained = explain(error)
            if explained is None:
                raise
            raise explained from error


def refuse_autocast(device: torch.device) -> None:
    """Raise if autocast is active for a device.

    A backward sweep multiplies thousands of Jacobians; what half precision does to that product
    has not been measured, so that it is not offered.

    Raises:
        InputError: if it is.
    """
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
        raise InputError(
            f"autocast to {dtype} is active for {device.type}, but a solve and its backward sweep"
            " run in float32 or float64: mixed precision may give a wrong gradient without a sign."
            f" Leave the block, or wrap the call in torch.autocast('{device.type}', enabled=False)."
        )


class LossWatch:
    """Notes what an evaluation inside it does; it makes the evaluation some times slower.

    Attributes:
        kinks: the operations with kinks, as they are called, in the order in which they were met.
        lowered: whether a number was rounded to half precision.
        no_grad: whether a part was kept from differentiation by `torch.no_grad`.
        data: whether `.data` was taken of something that is being differentiated.
        random: whether random numbers were drawn.
        hook: whether a hook was put on a tensor.
    """

    def __init__(self) -> None:
        self.kinks: dict[str, None] = {}
        self.lowered = self.no_grad = self.data = self.random = self.hook = False
        self._modes = _Operations(self), _Functions(self)

    def __enter__(self) -> Self:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Operations(TorchDispatchMode):
    """Sees the operations of ATen."""

    def __init__(self, watch: LossWatch) -> None:
        super().__init__()
        self._watch = watch

    @override
    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = KINKED.get(func.overloadpacket.__name__)
        if name is not None and _moves(args):
            self._watch.kinks[name] = None
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._watch.random = True
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype in _LOW and _moves(args):
            self._watch.lowered = True
        return result


class _Functions(TorchFunctionMode):
    """Sees the functions of torch, before they are differentiated."""

    def __init__(self, watch: LossWatch) -> None:
        super().__init__()
        self._watch = watch

    @override
    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch._C._set_grad_enabled and args == (False,):  # noqa: SLF001  # pyright: ignore
            self._watch.no_grad = True
        if func == torch.Tensor.data.__get__ and requires_grad(args[0]):  # pyright: ignore
            self._watch.data = True
        if func == torch.Tensor.register_hook:
            self._watch.hook = True
        return func(*args, **(kwargs or {}))


def _moves(args: tuple[Any, ...]) -> bool:
    """Whether the first argument is a floating-point tensor of full precision."""
    first = args[0] if args else None
    return isinstance(first, Tensor) and first.is_floating_point() and first.dtype not in _LOW


def check_watched(
    watch: LossWatch, differentiation: Differentiation, follows_flow: bool = False
) -> None:
    """Raise, or warn, if an evaluation did what derivatives do not show.

    Args:
        watch: what it did.
        differentiation: how it will be differentiated.
        follows_flow: whether the gradient is to be that of the flow.
    """
    if watch.lowered:
        raise InputError(
            "the loss rounds numbers to half precision (autocast, .half() or .bfloat16() inside"
            " it), which spoils the gradient of a long loop without a sign: leave the model in"
            " float32 or float64, or call it under torch.autocast(..., enabled=False)."
        )
    if watch.data:
        raise InputError(
            "the loss takes .data of something that depends on the parameters, which torch.func"
            " differentiates in part: use .detach()."
        )
    if watch.no_grad and not differentiation.respects_no_grad:
        raise CompatibilityError(
            f"the loss uses torch.no_grad, which {type(differentiation).__name__} does not see:"
            " use ReverseMode(), or .detach() in the loss."
        )
    if watch.hook:
        warnings.warn(_HOOK, OdeoptWarning, stacklevel=3)
    if watch.kinks and follows_flow:
        message = _KINKS.format(kinks=", ".join(watch.kinks))
        warnings.warn(message, OdeoptWarning, stacklevel=3)


def check_dependent(losses: Sequence[Any]) -> None:
    """Raise `InputError` if losses were evaluated inside a gradient, none of which it reaches."""
    if losses and not any_requires_grad(losses):
        raise InputError(
            "the loss does not depend on the parameters, so that its gradient is zero: what the"
            " model gives was detached, computed under torch.no_grad, or not used. Return a loss of"
            " what the model gives."
        )


CAPTURED = (
    "{what} uses a tensor that requires grad and is not one of its arguments: its gradient would"
    " be lost. Pass it in hparams, or detach it (for a module, odeopt.from_module passes every"
    " parameter). A derivative inside of it is taken with torch.func.grad, not requires_grad_()."
)


@contextmanager
def recording(captured: str = CAPTURED.format(what="the loss (or velocity)")) -> Generator[None]:
    """A block that evaluates losses by plain autograd, and looks at what they depend on.

    Not at those that are evaluated inside a transform of the user's own, whose graph is another.

    Args:
        captured: what the error says that is raised for a captured tensor.

    Raises:
        CapturedTensorError: if that requires grad and is not what is differentiated at.
        InputError: if a loss depends on nothing of it.
    """
    with noting_losses() as losses, noting_inputs() as points:
        yield
    seen = [leaf for leaf in tree.tensors(losses) if not inside_transform([leaf])]
    if depends_on_others(seen, points):
        raise CapturedTensorError(captured)
    check_dependent(losses)


@contextmanager
def unchanged(tensors: Sequence[Tensor]) -> Generator[None]:
    """A block that evaluates a loss of some tensors; raises `InputError` if it changes one."""
    before = versions(tensors)
    yield
    if versions(tensors) != before:
        raise InputError(
            "the loss (or velocity) changes the parameters or another argument in place, which"
            " later evaluations then see: compute a new tensor, e.g. x = x * 2 in place of"
            " x.mul_(2) (an embedding with max_norm changes its weights in place, too)."
        )


_HOOK = (
    "the loss puts a hook on a tensor, which torch calls in the second backward pass as well: if it"
    " changes gradients, the result is what backpropagation through the unrolled loop gives, and"
    " not the derivative of the steps. What is to be done to gradients goes into"
    " gradient_transform=, or into a torch.autograd.Function."
)
_KINKS = (
    "the loss has kinks ({kinks}), where the velocity of the flow jumps: its true gradient then"
    " has parts that no adjoint sees, however small the steps are (16 % of it in one measurement)."
    " Use smooth activations such as tanh, softplus or GELU, or Euler() with"
    " DiscreteAdjoint(), whose gradient is that of gradient descent, as backpropagation has it."
)


def loss_code(loss: Callable[..., Any]) -> object:
    """What losses of one kind have in common, though each call may make a new function."""
    return getattr(loss, "__code__", type(loss))


@final
class WatchedLosses:
    """Evaluations of many losses, each of which is looked at closely when it first comes.

    Args:
        differentiation: how they will be differentiated.
    """

    def __init__(self, differentiation: Differentiation) -> None:
        self._differentiation = differentiation
        self._seen: set[object] = set()

    def is_new(self, loss: Callable[..., Any]) -> bool:
        """Whether no evaluation of it has ended yet."""
        return loss_code(loss) not in self._seen

    @contextmanager
    def evaluation(self, loss: Callable[..., Any]) -> Generator[list[Tensor]]:
        """A block that evaluates a loss; in the end the list holds values that capture something.

        Raises:
            InputError: as `check_watched` and `check_dependent`.
            CompatibilityError: likewise, or if TorchScript runs the loss.
        """
        code = loss_code(loss)
        watch = None if code in self._seen else LossWatch()
        capturing: list[Tensor] = []
        if watch is not None:
            check_not_scripted(loss)
        with noting_losses() as values, watch or nullcontext():
            yield capturing
        if watch is not None:
            check_watched(watch, self._differentiation)
            self._seen.add(code)
        capturing += [value for value in values if captures(value)]
        check_dependent(values)
