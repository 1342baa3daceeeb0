"""Modules as losses."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from odeopt.errors import InputError
from odeopt.tools.arguments import call_loss, check_scalar
from odeopt.tools.captured import check_not_scripted
from odeopt.tools.describing import module_settings
from odeopt.tools.shown import Shown, shown
from odeopt.tools.types import PyTree

Objective = Callable[..., Tensor]
"""`objective(model, batch) -> scalar`, where `model` is the module with other parameters in it.

With hyperparameters of your own it is `objective(model, batch, hparams)`.
"""

_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_MAKING = threading.Lock()


def _no_evaluation(*args: Any, **keywords: Any) -> Tensor:
    """The objective in evaluation mode, which nobody has said."""
    raise InputError("a ModuleLoss put together by hand has no `evaluate`; from_module gives one.")


class ModuleHparams(NamedTuple):
    """The hyperparameters of a module's loss, where it has both kinds."""

    frozen: dict[str, Tensor]
    """The parameters that the inner loop does not move, by name."""
    own: PyTree
    """Those that the objective is called with."""


@dataclass(frozen=True, eq=False)
class ModuleLoss(Shown):
    """A module taken apart: what the inner loop moves, what it does not, and the loss of both.

    Attributes:
        params: adapted parameters by name, detached copies of the module's own.
        hparams: what to pass on as hparams, so that it can be learned: the other parameters by
            name, if some are frozen; your own hyperparameters, if there are some; a
            `ModuleHparams` of both; or None.
        loss: `loss(params, batch)`, or `loss(params, batch, hparams)` if hparams is not None. If
            there are buffers it also takes the keyword `buffers` and returns (value, buffers).
        buffers: running statistics by name, if the module updates some in its forward pass; else
            None. Pass it on to an update rule, e.g. `SGD(problem.loss, buffers=problem.buffers)`.
        evaluate: the same objective with the module in evaluation mode (no dropout, running
            statistics used as they are), an outer loss; it takes `buffers` too, if there are some.
    """

    params: dict[str, Tensor]
    hparams: Any
    loss: Callable[..., Any]
    buffers: dict[str, Tensor] | None = None
    evaluate: Callable[..., Tensor] = _no_evaluation


def from_module(
    module: nn.Module, objective: Objective, adapt: Callable[[str], bool] = lambda name: True, *,
    hparams: PyTree = None,
) -> ModuleLoss:  # fmt: skip
    """Take a module apart for an inner optimisation; the module itself is not changed.

    A module that draws random numbers (dropout) needs a `Stream` with a seed for its batch. One in
    training mode that updates running statistics needs an update rule, whose state they join.
    Parameters keep their shapes; they are named as in the module.

    Examples:
        >>> import torch, odeopt
        >>> model = torch.nn.Linear(3, 1)
        >>> mse = lambda model, batch: ((model(batch[0]) - batch[1]) ** 2).mean()
        >>> problem = odeopt.from_module(model, mse, adapt=lambda name: name == "weight")
        >>> sorted(problem.params), sorted(problem.hparams)
        (['weight'], ['bias'])

    Args:
        module: any module.
        objective: `objective(model, batch)`, a scalar tensor, or with your own hyperparameters as a
            third argument; `model` is the module, with the parameters of the moment in it.
        adapt: which parameters the inner loop moves, by name; all by default.
        hparams: None, or hyperparameters of your own, any pytree: weights of examples, strengths of
            regularisation. The objective is called with those of the moment.

    Raises:
        InputError: if no parameter is adapted, if running statistics are averaged in a way that
            depends on a counter (`momentum=None`), if a lazy part has no parameters yet, or if two
            parameters share their memory.
        CompatibilityError: if TorchScript runs a part of it.
    """
    check_not_scripted(module)
    _check_initialised(module)
    _check_apart(module)
    copies = {name: p.detach().clone() for name, p in module.named_parameters()}
    params = {name: p for name, p in copies.items() if adapt(name)}
    frozen = {name: p for name, p in copies.items() if name not in params}
    if not params:
        raise InputError(
            f"adapt chose none of the parameters {sorted(copies)}: choose at least one."
        )
    expected = _Expected(frozenset(frozen), hparams is not None)
    parts = _Parts(module, objective, _statistics(module), expected)
    moving = {name: parts.fixed.pop(name) for name in parts.moving}
    both = expected.together(frozen, hparams)
    return ModuleLoss(params, both, parts.loss, moving or None, parts.evaluate)


class _Expected(NamedTuple):
    """What a module's loss gets as hparams."""

    frozen: frozenset[str]
    """The names of the parameters that are not adapted."""
    has_own: bool
    """Whether there are hyperparameters with which the objective is called."""

    def together(self, frozen: dict[str, Tensor], own: PyTree) -> Any:
        """Both as hparams; only one of them if there is no other."""
        if self.frozen and self.has_own:
            return ModuleHparams(frozen, own)
        return own if self.has_own else frozen or None

    def split(self, hparams: Any) -> tuple[Mapping[str, Tensor], PyTree]:
        """The frozen parameters, and the hyperparameters that the objective is called with.

        Raises:
            InputError: if hparams is anything but what `ModuleLoss.hparams` is.
        """
        if hparams is None and not self.has_own:
            return {}, None  # frozen parameters are the module's own, which must not require grad
        frozen: Any
        frozen, own = ({}, hparams) if self.has_own else (hparams, None)
        if self.frozen and isinstance(hparams, ModuleHparams):
            frozen, own = hparams
        names = set(frozen) if isinstance(frozen, Mapping) else None
        if names != self.frozen or (own is None) is self.has_own:  # pyright: ignore
            raise InputError(
                f"hparams is {shown(hparams)}; expected {self._said()}, as the attribute hparams of"
                " what from_module returned. Hyperparameters of your own are declared with"
                " from_module(module, objective, hparams=...)."
            )
        return frozen, own

    def _said(self) -> str:
        names = f"the frozen parameters {sorted(self.frozen)}"
        if not self.has_own:
            return names if self.frozen else "None, since every parameter is adapted"
        return f"ModuleHparams of {names} and your own" if self.frozen else "your own"


class _Parts:
    """A module as functions of its parameters and running statistics, which it is lent for a call.

    A tensor that is in several places (tied parameters, a submodule in two places) is replaced in
    all of them; parts that are added to the module later are not. Threads that call one module take
    turns.

    Attributes:
        moving: the names of buffers that the forward pass updates and that join the state.
        fixed: the other buffers.

    Args:
        module: the module.
        objective: the loss of it.
        moving: see above.
        expected: what comes as hparams.
    """

    def __init__(
        self, module: nn.Module, objective: Objective, moving: list[str], expected: _Expected
    ) -> None:
        self._expected = expected
        self._module, self._objective, self.moving = module, objective, moving
        self._children = dict(module.named_modules())
        self._training = {name: child.training for name, child in self._children.items()}
        self.fixed = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        with _MAKING:
            self._lock = _LOCKS.setdefault(module, threading.RLock())
        self._places: dict[str, list[tuple[dict[str, Any], str]]] = {}
        """The dictionaries in which the module keeps a tensor, and its key in each."""
        names = {id(p): name for name, p in (*module.named_parameters(), *module.named_buffers())}
        for child in module.modules():
            for tensors in (vars(child)["_parameters"], vars(child)["_buffers"]):
                for key, tensor in tensors.items():
                    if tensor is not None:
                        self._places.setdefault(names[id(tensor)], []).append((tensors, key))

    def __reduce__(self) -> Any:
        raise InputError(
            "a recorded loop, or a module that was taken apart, can be neither copied nor pickled:"
            " it belongs to its module. Make another one from a copy of the module; inner.model and"
            " inner.write_back() give what a loop has come to."
        )

    def settings(self) -> Mapping[str, Any]:
        """What tells two of them apart: not the module's own parameters, which are not used."""
        return {
            "module": module_settings(self._module), "objective": self._objective,
            "training": self._training, "moving": self.moving, "fixed": self.fixed,
        }  # fmt: skip

    def loss(
        self, params: dict[str, Tensor], batch: PyTree, hparams: Any = None, buffers: Any = None
    ) -> Any:
        """The loss in the mode the module was in when it was taken apart."""
        if self.moving and buffers is None:
            raise InputError(
                f"the module updates running statistics ({', '.join(self.moving)}) in its forward"
                " pass: use an update rule such as SGD(problem.loss, buffers=problem.buffers), call"
                " module.eval() to use them as they are, or normalise by the batch alone"
                " (track_running_stats=False) or in groups (GroupNorm)."
            )
        now = {name: buffers[name].detach().clone() for name in self.moving}
        value = check_scalar(self._call(params, batch, hparams, now, self._training), "objective")
        return (value, now) if self.moving else value

    def evaluate(
        self, params: dict[str, Tensor], batch: PyTree, hparams: Any = None, buffers: Any = None
    ) -> Tensor:
        """The objective in evaluation mode, or many outer losses, shape [losses]."""
        if self.moving and buffers is None:
            raise InputError(
                "evaluate needs the running statistics: pass buffers (an outer loss gets them from"
                " an update rule that was made with buffers=problem.buffers)."
            )
        evaluating = dict.fromkeys(self._training, False)
        return self._call(params, batch, hparams, dict(buffers or {}), evaluating)

    def _call(
        self, params: dict[str, Tensor], batch: PyTree, hparams: Any, now: dict[str, Tensor],
        training: dict[str, bool],
    ) -> Tensor:  # fmt: skip
        fixed = {
            name: buffer.clone() if name.endswith(_COUNTER) else buffer
            for name, buffer in self.fixed.items()
        }
        before = [buffer._version for buffer in self.fixed.values()]  # noqa: SLF001
        frozen, own = self._expected.split(hparams)
        with self._lent({**fixed, **now, **frozen, **params}, training):
            value = call_loss(
                self._objective, own, self._module, batch, what="objective", of="model"
            )
        after = zip(self.fixed.items(), before, strict=True)
        changed = [name for (name, own), was in after if own._version != was]  # noqa: SLF001
        if changed:
            raise InputError(
                f"the forward pass changes the buffers {changed}, which the inner loop cannot"
                " replay: call module.eval(), or take that part out of the module."
            )
        return value

    @contextmanager
    def _lent(self, values: Mapping[str, Tensor], training: Mapping[str, bool]) -> Generator[None]:
        """A block in which the module has other tensors, by name, and is in other modes."""
        with self._lock:
            switched = [
                (child, child.training, mode)
                for name, mode in training.items()
                for child in [self._children[name]]
                if child.training != mode
            ]
            before = [
                (tensors, key, tensors[key], value)
                for name, value in values.items()
                for tensors, key in self._places[name]
            ]
            try:
                for tensors, key, _, value in before:
                    tensors[key] = value
                for child, _, mode in switched:
                    child.training = mode
                yield
            finally:
                for tensors, key, own, _ in before:
                    tensors[key] = own
                for child, own, _ in switched:
                    child.training = own


_COUNTER = "num_batches_tracked"
"""A buffer that counts forward passes and has no effect on them (unless momentum is None)."""


def _check_initialised(module: nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise InputError(
                f"{name!r} has no shape yet, since its module is a lazy one: call the module once,"
                " on a batch of the kind that it will see."
            )


def _check_apart(module: nn.Module) -> None:
    """Parameters of which one is a view of another would be moved apart."""
    places: dict[int, str] = {}
    for name, parameter in module.named_parameters():
        if parameter.numel() and not parameter.is_meta:
            other = places.setdefault(parameter.data_ptr(), name)
            if other != name:
                raise InputError(
                    f"the parameters {other!r} and {name!r} share their memory, but are two: the"
                    " inner loop would move them apart. Use one nn.Parameter in both places, or"
                    " clone()."
                )


def _statistics(module: nn.Module) -> list[str]:
    """The names of running statistics that the forward pass updates."""
    names: list[str] = []
    for name, child in module.named_modules():
        if not (child.training and getattr(child, "track_running_stats", False)):
            continue
        if getattr(child, "momentum", 0.1) is None:
            raise InputError(
                f"{type(child).__name__} {name!r} has momentum=None, so that its running"
                " statistics depend on how often it was called: give it a momentum, e.g. 0.1."
            )
        own = (part for part, _ in child.named_buffers(recurse=False) if part != _COUNTER)
        names += [f"{name}.{part}" if name else part for part in own]
    return names
