"""A module and an optimiser as they are lent to a recorded loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import final

from torch import Tensor, nn
from torch.optim import Optimizer

from odeopt.errors import CompatibilityError, InputError


@final
class Guard:
    """Notices that a module was changed since it was lent."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parameters, self._rest = _marks(module.parameters()), self._look_at_rest()

    def check_parameters(self) -> None:
        """Raise `InputError` if a parameter was changed."""
        if _marks(self._module.parameters()) != self._parameters:
            raise InputError(
                "the module's parameters were changed since the loop began: inner.step takes the"
                " place of optimizer.step(), and the final parameters come with inner.write_back()."
                " Change parameters before the loop."
            )

    def check_between_steps(self) -> None:
        """Raise `InputError` if anything else was changed that steps depend on.

        These are the modes of its parts (train, eval), its buffers, and which parameters require
        grad.
        """
        for message, now in self._look_at_rest().items():
            if now != self._rest[message]:
                raise InputError(message)

    def _look_at_rest(self) -> dict[str, object]:
        module = self._module
        return {
            _SWITCHED: [child.training for child in module.modules()],
            _REFILLED: _marks(module.buffers()),
            _FROZEN: [p.requires_grad for p in module.parameters()],
        }


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


def check_hooks(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise `CompatibilityError` if there is a hook that a recorded loop would not call.

    Hooks of the forward pass are called as ever.
    """
    found = [
        f"{kind} on {owner}"
        for owner, hooked, kinds in _hooked(model, optimizer)
        for attribute, kind in kinds.items()
        if getattr(hooked, attribute, None)
    ]
    if found:
        raise CompatibilityError(
            f"there is a hook ({', '.join(found)}), which a recorded loop does not call, since it"
            " has no graph of its own: remove it. What is to be done to gradients goes into"
            " gradient_transform=, what is to be done in each step into the loop."
        )


def _hooked(
    model: nn.Module, optimizer: Optimizer
) -> Iterator[tuple[str, object, Mapping[str, str]]]:
    """What may have hooks, with the attributes in which torch keeps them."""
    for name, parameter in model.named_parameters():
        yield f"the parameter {name!r}", parameter, _OF_PARAMETERS
    for name, child in model.named_modules():
        yield (f"the module {name!r}" if name else "the module"), child, _OF_MODULES
    yield "the optimizer", optimizer, _OF_OPTIMIZERS
    yield "all optimizers", import_module("torch.optim.optimizer"), _OF_ALL_OPTIMIZERS
    yield "all modules", import_module("torch.nn.modules.module"), _OF_ALL_MODULES


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
    found: list[list[str]] = []
    for index, group in enumerate(optimizer.param_groups):
        moved: list[Tensor] = [p for p in group["params"] if p.requires_grad]
        if any(id(p) not in names for p in moved):
            raise InputError(
                f"group {index} of the optimizer holds a tensor that is no parameter of the module:"
                " make it of model.parameters(), and learn other tensors as hparams."
            )
        found.append([names[id(p)] for p in moved])
    return found
