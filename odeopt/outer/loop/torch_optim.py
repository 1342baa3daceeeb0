"""`torch.optim` instances as update rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from odeopt.errors import CompatibilityError, InputError
from odeopt.inner import SGD, Adam, AdamW, RMSprop
from odeopt.inner.leafwise import LeafwiseRule, Option
from odeopt.tools.types import PyTree


@final
class Groups:
    """Parameters by name, and the same joined into one vector per group.

    Rules work entry by entry, so that they may work on few long vectors instead of many tensors,
    which takes a fraction of the time in small models.

    Args:
        names: the names of the parameters in each group; a group may be empty.
        params: the parameters by name.
    """

    def __init__(self, names: Sequence[Sequence[str]], params: Mapping[str, Tensor]) -> None:
        self._names = {str(index): list(own) for index, own in enumerate(names) if own}
        self._shapes = {name: leaf.shape for name, leaf in params.items()}

    @property
    def keys(self) -> list[str]:
        """What joined groups are called: their numbers, without the empty ones."""
        return list(self._names)

    def join(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One vector per group."""
        return {
            key: torch.cat([values[name].reshape(-1) for name in own])
            for key, own in self._names.items()
        }

    def split(self, joined: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `join`, in the order of the parameters."""
        parts: dict[str, Tensor] = {}
        for key, own in self._names.items():
            sizes = [self._shapes[name].numel() for name in own]
            parts.update(zip(own, joined[key].split(sizes), strict=True))
        return {name: parts[name].reshape(shape) for name, shape in self._shapes.items()}


class OptimizerMemory(NamedTuple):
    """What an optimiser remembers of the steps that it has made before.

    Attributes:
        slots: the rule's slots, each a dictionary by parameter; None for those of a fresh start.
        steps: how many steps it counts for.
    """

    slots: PyTree
    steps: int


def read_memory(
    optimizer: Optimizer, names: tuple[str, ...], parameters: Mapping[str, Tensor]
) -> OptimizerMemory:
    """Copies of what the optimiser remembers of some parameters.

    Args:
        optimizer: the optimiser.
        names: the slots of the rule it was translated to.
        parameters: the module's own, by name.

    Raises:
        InputError: if it has moved some of the parameters more often than others.
    """
    kind = translation_of(optimizer)
    theirs = {name: kind.slots[name] for name in names}

    def state_of(parameter: Tensor) -> dict[str, Any] | None:
        """None where there is none that has an effect."""
        state: dict[str, Any] = optimizer.state.get(parameter, {})
        complete = all(state.get(name) is not None for name in theirs.values())
        return state if theirs and complete else None

    states = {name: state_of(p) for name, p in parameters.items()}
    if all(state is None for state in states.values()):
        return OptimizerMemory(None, 0)
    counts = {name: 0 if s is None else kind.count(s) for name, s in states.items()}
    if len(set(counts.values())) > 1:
        raise InputError(
            f"the optimizer has moved its parameters by different numbers of steps, {counts}, and"
            " cannot be taken over: make a new one, or give each set of parameters its own."
        )
    slots = {
        ours: {name: (s or {})[own].detach().clone() for name, s in states.items()}
        for ours, own in theirs.items()
    }
    return OptimizerMemory(slots, next(iter(counts.values())))


def write_memory(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], slots: PyTree, steps: int
) -> None:
    """Give an optimiser the slots of a rule that has made so many steps in all."""
    kind = translation_of(optimizer)
    for name, parameter in parameters.items():
        state: Any = optimizer.state[parameter]
        for ours, values in slots.items():
            state[kind.slots[ours]] = values[name].detach().clone()
        if type(optimizer) is not torch.optim.SGD:
            state["step"] = torch.tensor(float(steps), dtype=torch.get_default_dtype())


_FREE = {"foreach", "fused", "lr"}
"""Options of torch that do not change the numbers, and the rate, which is a matter of its own."""


@dataclass(frozen=True)
class Translation:
    """How one kind of optimiser is translated.

    Attributes:
        make: the rule of the options.
        options: our name of each option; "betas" becomes a pair.
        flags: options that change the algorithm, and must be the same in every group.
        slots: torch's name of each slot.
        count: how many steps a state that torch has left counts for.
    """

    make: Callable[..., LeafwiseRule]
    options: dict[str, str]
    flags: tuple[str, ...]
    slots: dict[str, str]
    count: Callable[[dict[str, Any]], int]


_ADAM = Translation(
    Adam,
    {"betas": "betas", "eps": "eps", "weight_decay": "weight_decay"},
    ("amsgrad", "decoupled_weight_decay"),
    {"mean": "exp_avg", "square": "exp_avg_sq", "largest": "max_exp_avg_sq"},
    lambda state: int(state["step"]),
)
TRANSLATIONS: dict[type[Optimizer], Translation] = {
    torch.optim.SGD: Translation(
        SGD,
        {"momentum": "momentum", "dampening": "dampening", "weight_decay": "weight_decay"},
        ("nesterov",),
        {"momentum": "momentum_buffer"},
        lambda state: 1,  # torch counts nothing; only the first step differs
    ),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.RMSprop: Translation(
        RMSprop,
        {
            "alpha": "smoothing", "eps": "eps", "weight_decay": "weight_decay",
            "momentum": "momentum",
        },
        ("centered",),
        {"square": "square_avg", "mean": "grad_avg", "momentum": "momentum_buffer"},
        lambda state: int(state["step"]),
    ),
}  # fmt: skip


def translation_of(optimizer: object) -> Translation:
    """How an optimiser is translated.

    Raises:
        InputError: if it is no optimiser.
        CompatibilityError: if there is no translation of it or of one of its options.
    """
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"optimizer is {optimizer!r}; expected a torch.optim.Optimizer.")
    translation = TRANSLATIONS.get(type(optimizer))
    if translation is None:
        known = ", ".join(kind.__name__ for kind in TRANSLATIONS)
        raise CompatibilityError(
            f"{type(optimizer).__name__} is not translated; these are: {known} (not their"
            " subclasses). Write it as an odeopt.LeafwiseRule and use BilevelProblem."
        )
    known = {*translation.options, *translation.flags, *_FREE}
    for group in optimizer.param_groups:
        for name in optimizer.defaults:
            if name not in known and group.get(name):
                raise CompatibilityError(
                    f"{type(optimizer).__name__} has {name}={group[name]!r}, which is not"
                    f" supported: leave {name} out."
                )
    return translation


def settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The options of each group that must not change between steps."""
    translation = translation_of(optimizer)
    names = (*translation.options, *translation.flags)
    return [{name: group[name] for name in names} for group in optimizer.param_groups]


def check_settings(optimizer: Optimizer, before: list[dict[str, Any]]) -> None:
    """Raise `InputError` if an option other than lr has changed, or a group was added."""
    if len(before) != len(optimizer.param_groups):
        raise InputError(
            f"the optimizer had {len(before)} groups and has {len(optimizer.param_groups)} now: add"
            " groups before the loop."
        )
    for index, (old, new) in enumerate(zip(before, settings(optimizer), strict=True)):
        for name, value in old.items():
            if not _same(value, new[name]):
                raise InputError(
                    f"{name} of group {index} was {value!r} and is {new[name]!r} now: only lr may"
                    " change between steps (OneCycleLR and CyclicLR: cycle_momentum=False)."
                )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        pairs = zip(cast("tuple[Any, ...]", a), cast("tuple[Any, ...]", b), strict=True)
        return all(_same(x, y) for x, y in pairs)
    return a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else a == b


def make_rule(optimizer: Optimizer, keys: Sequence[str]) -> tuple[LeafwiseRule, list[Tensor]]:
    """The rule of an optimiser, and those of its options that are tensors to be learned.

    The rule is for parameters joined by group (see `Groups`), and expects `hparams["rates"]`, shape
    [groups], and `hparams["options"]`, the list.

    Args:
        optimizer: the optimiser.
        keys: the numbers of its groups that hold parameters.
    """
    translation, learned = translation_of(optimizer), list[Tensor]()
    own = settings(optimizer)
    flags = {name: _flag(own, name) for name in translation.flags}
    decoupled = flags.pop("decoupled_weight_decay", False)

    def option(values: list[Any]) -> Option:
        return _per_group([_learnable(value, learned) for value in values], keys)

    options: dict[str, Any] = {}
    for theirs, ours in translation.options.items():
        values = [group[theirs] for group in own]
        if theirs == "betas":
            options[ours] = tuple(option([pair[i] for pair in values]) for i in range(2))
            continue
        if theirs == "dampening":  # torch does not look at it without momentum
            momenta = [group["momentum"] for group in own]
            uses = [isinstance(m, Tensor) or m != 0 for m in momenta]
            values = [value if used else 0.0 for value, used in zip(values, uses, strict=True)]
        options[ours] = option(values)
    options["lr_scale"] = {key: _selector("rates", int(key)) for key in keys}
    options |= flags
    make: Callable[..., LeafwiseRule] = AdamW if decoupled else translation.make
    return make(_no_loss, **options), learned


def _no_loss(*args: Any) -> Tensor:
    raise AssertionError("the loss of a step is recorded with it")


def _flag(own: list[dict[str, Any]], name: str) -> bool:
    values = {bool(group[name]) for group in own}
    if len(values) > 1:
        raise CompatibilityError(f"the groups differ in {name}: give all of them the same.")
    return values.pop()


def _selector(name: str, index: int) -> Callable[[Any], Tensor]:
    return lambda hparams: hparams[name][index]


def _learnable(value: Any, learned: list[Tensor]) -> Any:
    """A number, or a selector of a tensor that is then one of the learned."""
    if not isinstance(value, Tensor):
        return value
    if not value.requires_grad:
        return value.item()
    return _selector("options", place_in(learned, value))


def place_in(tensors: list[Tensor], tensor: Tensor) -> int:
    """Where a tensor is in a list, to which it is added if it is not there."""
    for place, known in enumerate(tensors):
        if known is tensor:
            return place
    tensors.append(tensor)
    return len(tensors) - 1


def _per_group(values: list[Any], keys: Sequence[str]) -> Option:
    """One value for all, where they agree, or one for each group."""
    if all(not callable(value) and value == values[0] for value in values) or len(values) == 1:
        return values[0]
    return {key: values[int(key)] for key in keys}
