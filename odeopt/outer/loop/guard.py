"""A module and an optimiser as they are lent to a recorded loop."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from odeopt.engine.watch import loss_code
from odeopt.errors import CompatibilityError, InputError, OdeoptWarning
from odeopt.tools import tree


@final
class Guard:
    """Notices that a module was changed since it was lent."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before = self._look(list(module.modules()))

    def check_parameters(self) -> None:
        """Raise `InputError` if a parameter was changed."""
        if _marks(_held(self._module.modules(), "_parameters")) != self._before[_MOVED]:
            raise InputError(_MOVED)

    def check(self, children: Sequence[nn.Module]) -> None:
        """Raise `InputError` if anything was changed that a step depends on.

        Beside the parameters these are the modes of the module's parts (train, eval), its buffers,
        and which parameters require grad.

        Args:
            children: the parts that the module has now, itself the first.
        """
        for message, now in self._look(children).items():
            if now != self._before[message]:
                raise InputError(message)

    def _look(self, children: Sequence[nn.Module]) -> dict[str, object]:
        parameters = _held(children, "_parameters")
        return {
            _MOVED: _marks(parameters),
            _SWITCHED: [child.training for child in children],
            _REFILLED: _marks(_held(children, "_buffers")),
            _FROZEN: [p.requires_grad for p in parameters],
        }


_MOVED = (
    "the module's parameters were changed since the loop began: inner.step takes the place of"
    " optimizer.step(), and the final parameters come with inner.write_back(). Change parameters"
    " before the loop."
)
_SWITCHED = (
    "the module was switched between train() and eval() since the loop began: every step sees one"
    " mode. Validate a copy in between: inner.model.eval()."
)
_REFILLED = (
    "the module's buffers were changed since the loop began (by hand, or by a forward pass in"
    " training mode): the loop has copies of its own, and would not see it. Pass what changes from"
    " step to step in the batch, and look at a copy in between: inner.model."
)
_FROZEN = (
    "requires_grad of a parameter was changed since the loop began: every step moves those that"
    " required grad at first. Freeze parameters before the loop."
)


def _marks(tensors: Iterable[Tensor]) -> list[object]:
    """What tells that a tensor is another one, or was changed in place or by `.data`."""
    return [(id(x), x._version, x.data_ptr(), x.dtype) for x in tensors]  # noqa: SLF001


def _held(children: Iterable[nn.Module], kind: str) -> list[Tensor]:
    """The parameters or buffers of modules; one that is in two places comes twice.

    Torch's own iterators name each and leave out the second, which takes five times as long.
    """
    return [x for child in children for x in vars(child)[kind].values() if x is not None]


def check_hooks(children: Sequence[nn.Module], optimizer: Optimizer) -> None:
    """Raise `CompatibilityError` if there is a hook that a recorded loop would not call.

    Hooks of the forward pass are called as ever.

    Args:
        children: the parts of a module, itself the first.
        optimizer: its optimiser.
    """
    owners: list[tuple[Iterable[object], dict[str, str]]] = [
        (_held(children, "_parameters"), _OF_PARAMETERS),
        (children, _OF_MODULES),
        ([optimizer], _OF_OPTIMIZERS),
        ([import_module("torch.optim.optimizer")], _OF_ALL_OPTIMIZERS),
        ([import_module("torch.nn.modules.module")], _OF_ALL_MODULES),
    ]
    found = {
        (id(owner), kinds[attribute])
        for own, kinds in owners for attribute in kinds for owner in own
        if getattr(owner, attribute, None)
    }  # fmt: skip
    if found:
        names = _names(children[0], optimizer)
        hooks = ", ".join(sorted(f"{kind} on {names[owner]}" for owner, kind in found))
        raise CompatibilityError(
            f"there is a hook ({hooks}), which a recorded loop does not call, since it"
            " has no graph of its own: remove it. What is to be done to gradients goes into"
            " gradient_transform=, what is to be done in each step into the loop."
        )


def _names(model: nn.Module, optimizer: Optimizer) -> dict[int, str]:
    """What may have hooks, by its id."""
    return {
        **{id(p): f"the parameter {n!r}" for n, p in model.named_parameters()},
        **{id(m): f"the module {n!r}" if n else "the module" for n, m in model.named_modules()},
        id(optimizer): "the optimizer",
        id(import_module("torch.optim.optimizer")): "all optimizers",
        id(import_module("torch.nn.modules.module")): "all modules",
    }


_OF_PARAMETERS = {
    "_backward_hooks": "register_hook",
    "_post_accumulate_grad_hooks": "register_post_accumulate_grad_hook",
}
_OF_MODULES = {
    "_backward_hooks": "register_full_backward_hook",
    "_backward_pre_hooks": "register_full_backward_pre_hook",
}
_OF_OPTIMIZERS = {
    "_optimizer_step_pre_hooks": "register_step_pre_hook",
    "_optimizer_step_post_hooks": "register_step_post_hook",
}
_OF_ALL_OPTIMIZERS = {
    "_global_optimizer_pre_hooks": "register_optimizer_step_pre_hook",
    "_global_optimizer_post_hooks": "register_optimizer_step_post_hook",
}
_OF_ALL_MODULES = {
    "_global_backward_hooks": "register_module_full_backward_hook",
    "_global_backward_pre_hooks": "register_module_full_backward_pre_hook",
}


def moved_groups(model: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """The names of the parameters that each group moves: those that require grad.

    Raises:
        InputError: if one is no parameter of the module.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups: list[list[str]] = []
    for index, group in enumerate(optimizer.param_groups):
        moved: list[Tensor] = [p for p in group["params"] if p.requires_grad]
        if any(id(p) not in names for p in moved):
            raise InputError(
                f"group {index} of the optimizer holds a tensor that is no parameter of the module:"
                " make it of model.parameters(), and learn other tensors as hparams."
            )
        groups.append([names[id(p)] for p in moved])
    return groups


def copy_of(module: nn.Module) -> nn.Module:
    """A deep copy, without the history of tensors that the module keeps beside its parameters.

    Such as a weight that is computed from others before each forward pass, or the last output.
    Torch refuses to copy them as they are.
    """
    kept = tree.tensors([list(vars(child).values()) for child in module.modules()])
    return copy.deepcopy(module, {id(x): x.detach().clone() for x in kept if not x.is_leaf})


Parameters = Callable[[], Mapping[str, Tensor]]
"""Makes the parameters of some state, which are rarely needed."""

Evaluate = Callable[[Mapping[str, Tensor]], Tensor]
"""A loss, with a graph, at some parameters."""


@final
class UnusedParameters:
    """Looks for parameters that steps move although their loss does not depend on them.

    Args:
        known: the names of such parameters by the code of a loss, as far as they are known.
    """

    def __init__(self, known: dict[object, list[str]]) -> None:
        self._known = known
        self._warned = False

    def check(
        self, loss: Callable[..., object], evaluate: Evaluate, before: Parameters, after: Parameters
    ) -> None:  # fmt: skip
        """Warn, once, if the step from `before` to `after` has done so.

        A loss is evaluated when it first comes, and before it is warned of: functions of one code
        may use other parameters.
        """
        if self._warned:
            return
        code = loss_code(loss)
        if code not in self._known:
            self._known[code] = _unused(evaluate, before())
        if not self._known[code] or not _moved(self._known[code], before(), after()):
            return
        self._known[code] = _unused(evaluate, before())
        names = _moved(self._known[code], before(), after())
        if names:
            self._warned = True
            warnings.warn(
                f"the loss does not depend on {', '.join(names)}, which weight decay or momentum"
                " moves nevertheless: torch.optim leaves alone what has no gradient, but in a"
                " recorded loop it has a gradient of zero. Leave such parameters out of the"
                " optimizer, or put them into a group without weight_decay.",
                OdeoptWarning,
                stacklevel=7,
            )


def _unused(evaluate: Evaluate, params: Mapping[str, Tensor]) -> list[str]:
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in params.items()}
    gradients = torch.autograd.grad(evaluate(leaves), list(leaves.values()), allow_unused=True)
    gradients = cast("tuple[Tensor | None, ...]", gradients)
    return [name for name, gradient in zip(leaves, gradients, strict=True) if gradient is None]


def _moved(
    names: Iterable[str], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> list[str]:
    return [name for name in names if not torch.equal(before[name], after[name])]
