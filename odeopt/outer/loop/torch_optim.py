"""`torch.optim` instances as update rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from odeopt.errors import CompatibilityError, InputError
from odeopt.inner.leafwise import LeafwiseRule, Leaves, Option
from odeopt.outer.loop.translations import no_loss, translation_of
from odeopt.tools.shown import shown
from odeopt.tools.types import PyTree


@final
class Groups:
    """Parameters by name, and the same joined into one vector per group.

    Rules that work entry by entry may work on few long vectors instead of many tensors, which takes
    a fraction of the time in small models.

    Args:
        names: the names of the parameters in each group; a group may be empty.
        params: the parameters by name.
        apart: whether every parameter stays as it is, for rules that look at it as a whole.
    """

    def __init__(
        self, names: Sequence[Sequence[str]], params: Mapping[str, Tensor], apart: bool = False
    ) -> None:
        self._names = {str(index): list(own) for index, own in enumerate(names) if own}
        self._shapes = {name: leaf.shape for name, leaf in params.items()}
        self._apart = apart

    @property
    def places(self) -> dict[str, int]:
        """What the joined parts are called, and the number of the group of each."""
        groups = {key: int(key) for key in self._names}
        if not self._apart:
            return groups
        own = {name: groups[key] for key, names in self._names.items() for name in names}
        return {name: own[name] for name in self._shapes}

    def join(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One vector per group."""
        if self._apart:
            return {name: values[name] for name in self._shapes}
        return {
            key: torch.cat([values[name].reshape(-1) for name in own])
            for key, own in self._names.items()
        }

    def split(self, joined: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `join`, in the order of the parameters."""
        if self._apart:
            return dict(joined)
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
        ours: {name: _like((s or {})[own], parameters[name]) for name, s in states.items()}
        for ours, own in theirs.items()
    }
    return OptimizerMemory(slots, next(iter(counts.values())))


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy in the parameter's shape: some of what torch remembers is one number for all."""
    return value.detach().to(parameter).expand_as(parameter).clone()


def write_memory(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], slots: PyTree, steps: int
) -> None:
    """Give an optimiser the slots of a rule that has made so many steps in all."""
    kind = translation_of(optimizer)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in parameters.items():
        state: Any = optimizer.state[parameter]
        group = groups[id(parameter)]
        numbers: dict[str, Any] = dict(kind.numbers(steps, group))
        for ours, values in slots.items():
            value, theirs = values[name].detach(), kind.slots[ours]
            if theirs in kind.scalars:
                numbers[theirs] = value.reshape(-1)[:1].sum()  # an empty parameter has none
            else:
                state[theirs] = value.clone()
        for theirs, number in numbers.items():
            old = state.get(theirs, _scalar(parameter, group, kind.on_device))
            state[theirs] = torch.zeros_like(old) + number if isinstance(old, Tensor) else number


def _scalar(parameter: Tensor, group: Mapping[str, Any], on_device: bool) -> Tensor:
    """A number as torch keeps it in its state: where, and how precise."""
    precise = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    there = on_device or group.get("fused") or group.get("capturable")
    dtype = torch.float64 if precise else torch.float32
    return torch.zeros((), dtype=dtype, device=parameter.device if there else "cpu")


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
                was, now = shown(value), shown(new[name])
                raise InputError(
                    f"{name} of group {index} was {was} and is {now} now: only lr may change"
                    " between steps (OneCycleLR and CyclicLR: cycle_momentum=False)."
                )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        pairs = zip(cast("tuple[Any, ...]", a), cast("tuple[Any, ...]", b), strict=True)
        return all(_same(x, y) for x, y in pairs)
    return a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else a == b


@final
class RuleOfGroups(LeafwiseRule):
    """A rule whose learning rates are those of groups, and part of its options."""

    def __init__(self, rule: LeafwiseRule, rates: Option) -> None:
        super().__init__(no_loss)
        self._rule = rule
        self._options = {**rule.options(), _RATE: rates}
        self.slot_names, self.elementwise = rule.slot_names, rule.elementwise

    @override
    def options(self) -> dict[str, Option]:
        return self._options

    @override
    def init_slots(self, params: PyTree) -> PyTree:
        return self._rule.init_slots(params)

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        own = dict(options)
        return self._rule.step(k, own.pop(_RATE), g, u, slots, own)


_RATE = "lr"


class Translated(NamedTuple):
    """An optimiser as a rule.

    Attributes:
        rule: for parameters that are joined as `groups` says. It expects `hparams["rates"]`, shape
            [groups], and `hparams["options"]`, the list of what is learned.
        learned: those of its options that are tensors which require grad.
        groups: how parameters are joined.
    """

    rule: LeafwiseRule
    learned: list[Tensor]
    groups: Groups


def translate(
    optimizer: Optimizer, names: Sequence[Sequence[str]], params: Mapping[str, Tensor]
) -> Translated:
    """The rule of an optimiser.

    Args:
        optimizer: the optimiser.
        names: the names of the parameters that each of its groups moves.
        params: these parameters by name.

    Raises:
        CompatibilityError: if it cannot be translated.
        InputError: if what was registered for it makes no rule.
    """
    kind = translation_of(optimizer)

    def make(groups: Groups) -> Translated:
        learned = list[Tensor]()
        rule = kind.rule(optimizer, _options(optimizer, groups.places, learned))
        rates = {key: _selector("rates", index) for key, index in groups.places.items()}
        return Translated(RuleOfGroups(rule, rates), learned, groups)

    joined = make(Groups(names, params))
    return joined if joined.rule.elementwise else make(Groups(names, params, apart=True))


def _options(
    optimizer: Optimizer, places: Mapping[str, int], learned: list[Tensor]
) -> dict[str, Any]:
    """What the rule is made with; tensors that require grad are added to the learned."""
    kind, own = translation_of(optimizer), settings(optimizer)
    options: dict[str, Any] = {ours: _flag(own, theirs) for theirs, ours in kind.flags.items()}

    def option(values: list[Any]) -> Option:
        return _per_group([_learnable(value, learned) for value in values], places)

    for theirs, ours in kind.options.items():
        values = [group[theirs] for group in own]
        if isinstance(values[0], tuple | list):
            places_of = range(len(cast("Any", values[0])))
            options[ours] = tuple(option([each[i] for each in values]) for i in places_of)
            continue
        if theirs == "dampening":  # torch does not look at it without momentum
            momenta = [group["momentum"] for group in own]
            uses = [isinstance(m, Tensor) or m != 0 for m in momenta]
            values = [value if used else 0.0 for value, used in zip(values, uses, strict=True)]
        options[ours] = option(values)
    return options


def _flag(own: list[dict[str, Any]], name: str) -> Any:
    values = [group[name] for group in own]
    if any(value != values[0] for value in values):
        raise CompatibilityError(f"the groups differ in {name}: give all of them the same.")
    return values[0]


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


def _per_group(values: list[Any], places: Mapping[str, int]) -> Option:
    """One value for all, where they agree, or one for each joined part."""
    if all(not callable(value) and value == values[0] for value in values) or len(values) == 1:
        return values[0]
    return {key: values[index] for key, index in places.items()}
