"""Which optimisers a recorded loop knows, and by which rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from odeopt.errors import CompatibilityError, InputError
from odeopt.inner import (
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
)
from odeopt.inner.leafwise import LeafwiseRule
from odeopt.tools.shown import shown

Numbers = Callable[[int, Mapping[str, Any]], Mapping[str, float]]
"""What an optimiser remembers after so many steps with the options of a group, beside slots."""

MakeRule = Callable[..., LeafwiseRule]
"""`make_rule(loss, **options)`, as the rules of odeopt are made."""


def _counted(steps: int, group: Mapping[str, Any]) -> Mapping[str, float]:
    return {"step": steps}


@dataclass(frozen=True)
class Translation:
    """How one kind of optimiser is translated.

    Attributes:
        make: the rule of the options.
        options: the rule's name of each option by torch's; those that are pairs become pairs.
        flags: the same for options that change the algorithm, and must be the same in every group.
        slots: torch's name of each slot.
        count: how many steps a state that torch has left counts for.
        numbers: what torch remembers beside the slots.
        scalars: slots that are one number in torch, by torch's names.
        on_device: whether numbers are where the parameter is, whatever the options say.
    """

    make: MakeRule
    options: Mapping[str, str]
    flags: Mapping[str, str]
    slots: Mapping[str, str]
    count: Callable[[Mapping[str, Any]], int] = field(default=lambda state: int(state["step"]))
    numbers: Numbers = field(default=_counted)
    scalars: tuple[str, ...] = ()
    on_device: bool = False

    def rule(self, optimizer: Optimizer, options: Mapping[str, Any]) -> LeafwiseRule:
        """The rule with these options, checked.

        Raises:
            InputError: if it is no leafwise rule, or a slot of it has no name in torch.
        """
        name = type(optimizer).__name__
        rule = self.make(no_loss, **options)
        usable = isinstance(rule, LeafwiseRule)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not usable or type(rule).apply is not LeafwiseRule.apply:
            raise InputError(
                f"the rule registered for {name} is {shown(rule)}; expected a LeafwiseRule, which"
                " has a step and no apply of its own."
            )
        unknown = sorted(set(rule.slot_names) - set(self.slots))
        if unknown:
            raise InputError(
                f"the rule registered for {name} has the slots {unknown}, and it is not known what"
                f" {name} calls them in its state: register it with slots={{'exp_avg':"
                f" '{unknown[0]}', ...}}."
            )
        return rule


def no_loss(*args: Any) -> Any:
    """The loss of a rule of which only `step` is used."""
    raise AssertionError("the loss of a step is recorded with it")


def _named(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _adam(loss: Any, *, decoupled_weight_decay: bool = False, **options: Any) -> LeafwiseRule:
    return (AdamW if decoupled_weight_decay else Adam)(loss, **options)


_MOMENTS = {"mean": "exp_avg", "square": "exp_avg_sq"}
_ADAM = Translation(
    _adam,
    _named("betas", "eps", "weight_decay"),
    _named("amsgrad", "decoupled_weight_decay", "maximize"),
    {**_MOMENTS, "largest": "max_exp_avg_sq"},
)
TRANSLATIONS: dict[type[Optimizer], Translation] = {
    torch.optim.SGD: Translation(
        SGD,
        _named("momentum", "dampening", "weight_decay"),
        _named("nesterov", "maximize"),
        {"momentum": "momentum_buffer"},
        count=lambda state: 1,  # torch counts nothing; only the first step differs
        numbers=lambda steps, group: {},
    ),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.RMSprop: Translation(
        RMSprop,
        {**_named("eps", "weight_decay", "momentum"), "alpha": "smoothing"},
        _named("centered", "maximize"),
        {"square": "square_avg", "mean": "grad_avg", "momentum": "momentum_buffer"},
    ),
    torch.optim.Adagrad: Translation(
        Adagrad,
        _named("lr_decay", "weight_decay", "initial_accumulator_value", "eps"),
        _named("maximize"),
        _named("sum"),
    ),
    torch.optim.NAdam: Translation(
        NAdam,
        _named("betas", "eps", "weight_decay", "momentum_decay"),
        _named("decoupled_weight_decay", "maximize"),
        {**_MOMENTS, "product": "mu_product"},
        scalars=("mu_product",),
    ),
    torch.optim.RAdam: Translation(
        RAdam,
        _named("betas", "eps", "weight_decay"),
        _named("decoupled_weight_decay", "maximize"),
        _MOMENTS,
    ),
    torch.optim.Adamax: Translation(
        Adamax,
        _named("betas", "eps", "weight_decay"),
        _named("maximize"),
        {"mean": "exp_avg", "largest": "exp_inf"},
    ),
    torch.optim.Adadelta: Translation(
        Adadelta,
        _named("rho", "eps", "weight_decay"),
        _named("maximize"),
        {"square": "square_avg", "moved": "acc_delta"},
    ),
    torch.optim.ASGD: Translation(
        ASGD,
        _named("lambd", "alpha", "t0", "weight_decay"),
        _named("maximize"),
        {"average": "ax", "rate": "eta"},
        numbers=lambda steps, group: {"step": steps, "mu": 1 / max(1, steps - group["t0"])},
        scalars=("eta",),
        on_device=True,
    ),
    torch.optim.Rprop: Translation(
        Rprop,
        _named("etas", "step_sizes"),
        _named("maximize"),
        {"previous": "prev", "size": "step_size"},
    ),
}

_AS_A_WHOLE = (
    "looks at each matrix as a whole. Write it as an odeopt.LeafwiseRule and register it with"
    " odeopt.register_optimizer, or move these parameters by another optimizer, e.g. AdamW."
)
REFUSED: dict[type[Optimizer], str] = {
    torch.optim.LBFGS: (
        "evaluates the loss several times in a step and searches along a line, which a recorded"
        " step does not. Near a minimum take ImplicitAdjoint, otherwise SGD or Adam."
    ),
    torch.optim.SparseAdam: (
        "takes sparse gradients only, and a recorded loop makes dense ones. Take Adam, and"
        " sparse=False in nn.Embedding."
    ),
    torch.optim.Muon: _AS_A_WHOLE,
    torch.optim.Adafactor: _AS_A_WHOLE,
}
"""What is wrong with optimisers of torch that have no translation, and what to do."""

_FREE = {"foreach", "fused", "capturable", "lr"}
"""Options of torch that do not change the numbers, and the rate, which is a matter of its own."""


def register_optimizer(
    torch_class: type[Optimizer], make_rule: MakeRule, *,
    options: Mapping[str, str] | Sequence[str] = (), flags: Mapping[str, str] | Sequence[str] = (),
    slots: Mapping[str, str] | Sequence[str] = (), counter: str | None = "step",
) -> None:  # fmt: skip
    """Say by which rule `RecordedLoop` makes the steps of an optimiser class of your own.

    Each mapping is from the optimiser's name to the rule's; a sequence of names says that they are
    the same. Options that the optimiser has and that are not listed must be off (0, False, None).

    Cost: a rule that is `elementwise` works on one vector per group, another on each parameter.

    Examples:
        >>> import torch, odeopt
        >>> class Signs(torch.optim.Optimizer):
        ...     def __init__(self, params, lr=0.1, width=1.0):
        ...         super().__init__(params, {"lr": lr, "width": width})
        >>> class SignRule(odeopt.LeafwiseRule):
        ...     def __init__(self, loss, width):
        ...         super().__init__(loss)
        ...         self.width = width
        ...     def options(self):
        ...         return {"width": self.width}
        ...     def step(self, k, lr, g, u, slots, options):
        ...         return u - lr * torch.tanh(g / options["width"]), {}
        >>> odeopt.register_optimizer(Signs, SignRule, options=["width"])

    Args:
        torch_class: the optimiser's class; subclasses of it are not meant.
        make_rule: `make_rule(loss, **options)` makes a `LeafwiseRule`, whose `step` gets the
            group's learning rate as lr. An option is what `Option` says, or a tuple of such; the
            rule's `options()` returns them, and its `step` gets their values.
        options: options that are numbers, beside lr.
        flags: options of other kinds; they must be the same in every group.
        slots: what the optimiser's state holds for each parameter, as slots of the rule, all of
            which must be there. A loop takes them over, and `write_back` gives them back.
        counter: what the state calls the number of steps. With None a loop that goes on begins
            with k = 1, as if one step had been made.

    Raises:
        InputError: if torch_class is no optimiser class or has a rule already, or make_rule cannot
            be called.

    References:
        The interface follows `higher.register_optim` (Grefenstette et al. 2019).
    """
    if not isinstance(torch_class, type) or not issubclass(torch_class, Optimizer):  # pyright: ignore
        raise InputError(f"torch_class is {shown(torch_class)}; expected a subclass of Optimizer.")
    if not callable(make_rule):
        raise InputError(f"make_rule is {shown(make_rule)}; expected a function or a LeafwiseRule.")
    if torch_class in TRANSLATIONS:
        raise InputError(f"{torch_class.__name__} has a rule already: register each class once.")
    known = _as_mapping(slots, "slots")
    TRANSLATIONS[torch_class] = Translation(
        make_rule, _as_mapping(options, "options"), _as_mapping(flags, "flags"),
        {ours: theirs for theirs, ours in known.items()},
        count=lambda state: 1 if counter is None else int(state[counter]),
        numbers=lambda steps, group: {} if counter is None else {counter: steps},
    )  # fmt: skip


def _as_mapping(names: Mapping[str, str] | Sequence[str], what: str) -> dict[str, str]:
    if isinstance(names, str):
        raise InputError(
            f"{what} is {shown(names)}; expected several names, e.g. [{shown(names)}]."
        )
    return dict(names) if isinstance(names, Mapping) else _named(*names)


def translation_of(optimizer: object) -> Translation:
    """How an optimiser is translated.

    Raises:
        InputError: if it is no optimiser.
        CompatibilityError: if there is no translation of it or of one of its options.
    """
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"optimizer is {shown(optimizer)}; expected a torch.optim.Optimizer.")
    kind = type(optimizer)
    translation = TRANSLATIONS.get(kind)
    if translation is None:
        if kind in REFUSED:
            raise CompatibilityError(f"{kind.__name__} {REFUSED[kind]}")
        known = ", ".join(each.__name__ for each in TRANSLATIONS)
        raise CompatibilityError(
            f"{kind.__name__} is not translated; these are: {known} (not their subclasses)."
            " Write its step as an odeopt.LeafwiseRule, and say so with"
            " odeopt.register_optimizer."
        )
    known = {*translation.options, *translation.flags, *_FREE}
    for group in optimizer.param_groups:
        for name in optimizer.defaults:
            if name not in known and group.get(name):
                raise CompatibilityError(
                    f"{kind.__name__} has {name}={shown(group[name])}, which is not supported:"
                    f" leave {name} out."
                )
    return translation
