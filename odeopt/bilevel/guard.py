"""A module and an optimiser as they are lent to a recorded loop."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.optim import Optimizer

from odeopt.errors import InputError


@final
class Guard:
    """Notices that a module was changed since it was lent."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._versions, self._modes = self._look_at_parameters(), self._look_at_modes()

    def check_parameters(self) -> None:
        """Raise `InputError` if a parameter was changed."""
        if self._look_at_parameters() != self._versions:
            raise InputError(
                "the module's parameters were changed since the loop began: inner.step takes the"
                " place of optimizer.step(), and the final parameters come with inner.write_back()."
                " Change parameters before the loop."
            )

    def check_modes(self) -> None:
        """Raise `InputError` if a part was switched between training and evaluation."""
        if self._look_at_modes() != self._modes:
            raise InputError(
                "the module was switched between train() and eval() since the loop began: every"
                " step sees one mode. Validate a copy in between: inner.model.eval()."
            )

    def _look_at_parameters(self) -> list[tuple[int, int]]:
        return [(id(p), p._version) for p in self._module.parameters()]  # noqa: SLF001

    def _look_at_modes(self) -> list[bool]:
        return [child.training for child in self._module.modules()]


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
