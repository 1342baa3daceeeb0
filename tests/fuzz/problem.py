"""The tensors and losses of a composition, which odeopt and the reference both get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .composition import RULES, Composition

EXAMPLES, FEATURES, POOL = 4, 3, 10
NOISE_SEED, ORDER_SEED = 7, 5
STATISTICS = "mean"

LEARNED, GROUPS = "learned", "groups"
STRENGTH, DAMPING = 2.0, 1.5
CONVEX = 30.0
"""A strength that makes every minimum one, which `ImplicitAdjoint` presumes."""
BODY, HEAD = 0.4, 0.9
"""The first two of three groups; the third is learned."""

NUMBERS: dict[str, dict[str, float]] = {
    "gradient-flow": {"weight_decay": 0.3},
    "regularized-flow": {"strength": 1.7, "weight_decay": 0.2},
    "heavy-ball": {"damping": 1.1, "weight_decay": 0.2},
    "nesterov-flow": {},
    "sgd": {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.2, "lr_scale": 1.3},
    "adam": {"beta1": 0.8, "beta2": 0.9, "eps": 0.02, "weight_decay": 0.2, "lr_scale": 0.7},
    "adamw": {"beta1": 0.7, "beta2": 0.95, "eps": 0.02, "weight_decay": 0.2, "lr_scale": 0.7},
    "rmsprop": {
        **{"smoothing": 0.8, "eps": 0.05, "weight_decay": 0.2, "momentum": 0.6},
        **{"lr_scale": 0.7},
    },
}
"""The options of each field that are numbers."""


@dataclass(frozen=True)
class Problem:
    """What is given to odeopt.

    Attributes:
        params: the initial parameters.
        hparams: None if the composition has none.
        x: the examples, shape [steps or 1, tasks if there are some, examples, features].
        y: their targets.
        index: which weight each example has.
        outer: the validation data.
        dt: step sizes, shape [N] or [tasks, N].
        stops: None, or how many steps are made, shape [] or [tasks].
        state: None, or a warm start by slot name.
        level: where the event is, in units of the loss.
    """

    params: Any
    hparams: Any
    x: Tensor
    y: Tensor
    index: Tensor
    outer: Any
    dt: Tensor
    stops: Tensor | None
    state: dict[str, Tensor] | None
    level: float


def make_problem(c: Composition) -> Problem:
    """The tensors of a composition, float64 on the CPU."""
    generator = torch.Generator().manual_seed(c.seed)

    def draw(*shape: int, scale: float = 0.7) -> Tensor:
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    params: Any = draw(FEATURES)
    if c.shape == "tree":
        params = {"body": {"w": draw(FEATURES, 2)}, "head": (draw(2), draw())}
    lead = (c.tasks,) if c.tasks else ()
    count = max(c.steps, 1) if c.batches in ("indexed", "stacked") else 1
    examples = POOL if c.batches in ("minibatches", "dataset") else EXAMPLES
    shape = (count, *lead, examples)
    index = torch.randint(POOL, shape, generator=generator)
    x, y = draw(*shape, FEATURES, scale=1.0), draw(*shape)
    outer = (draw(*lead, EXAMPLES, FEATURES, scale=1.0), draw(*lead, EXAMPLES))
    hparams = _hparams(c, draw) if c.hparams else None
    size = sum(leaf.numel() for leaf in pytree.tree_leaves(params))
    dt = _step_sizes(c, generator)
    stops = None
    if c.stops:
        stops = torch.randint(c.steps + 1, lead if c.own != "nothing" else (), generator=generator)
        dt = torch.where(torch.arange(c.steps) < stops[..., None], dt, 0.0)
    state = {name: draw(size) for name in slot_names(c)} if c.warm else None
    if state is not None:
        state |= {name: state[name].square() + 1 for name in ("square", "largest") if name in state}
    found = Problem(params, hparams, x, y, index, outer, dt, stops, state, 0.0)
    return found if c.event == 0 else _with_level(c, found)


def _hparams(c: Composition, draw: Any) -> dict[str, Any]:
    options = {name: torch.tensor(v, dtype=torch.float64) for name, v in numbers(c).items()}
    center = draw(FEATURES)
    if c.shape == "tree":
        center = {"body": {"w": draw(FEATURES, 2)}, "head": (draw(2), draw())}
    return {
        "center": center,
        "weights": draw(POOL),
        "penalty": {"decay": draw().square(), "shift": draw(FEATURES, scale=0.2)},
        "options": options,
        "rates": draw(scale=0.2),
        "scale": draw() + 2,
        "entries": draw(FEATURES).square() + 0.1,
        "name": "not a tensor",
    }


def _step_sizes(c: Composition, generator: torch.Generator) -> Tensor:
    short = c.field in ("adam", "adamw", "rmsprop") or c.adjoint == "implicit"
    size = 0.02 if short else 0.1
    steps = torch.arange(c.steps, dtype=torch.float64)
    factors = {
        "constant": torch.ones_like(steps),
        "uniform": torch.ones_like(steps),
        "warm-up": (steps / 3).clamp(max=1.0),
        "decay": 1 / (1 + steps),
        "gaps": (steps % 3 != 1).to(torch.float64),
    }
    dt = size * factors[c.rates]
    if c.own == "nothing":
        return dt
    shape = (c.tasks, c.steps if c.own == "rates" else 1)
    own = torch.rand(shape, generator=generator, dtype=torch.float64) * 1.5
    if c.own == "horizons":
        own[:1] = 0.0
    return dt * own


def is_odd(c: Composition) -> bool:
    """Whether the flag of the field is set: nesterov, amsgrad, centered, or a centre of its own."""
    return c.variant % 2 == 1


def numbers(c: Composition) -> dict[str, float]:
    """The options of its field that are numbers."""
    own = {"strength": CONVEX} if c.adjoint == "implicit" else {}
    return NUMBERS[c.field] | {name: value for name, value in own.items() if not has_rule(c)}


def option_values(c: Composition) -> dict[str, Any]:
    """Each option that is given: a number, or LEARNED or GROUPS (see `Composition.options`)."""
    names = numbers(c)
    if c.field == "sgd" and is_odd(c):
        names["dampening"] = 0.0
    match c.options:
        case "numbers":
            return names
        case "learned":
            learned = dict.fromkeys(names, LEARNED)
            return learned | {n: 0.0 for n in ("dampening",) if names.get(n) == 0.0}
        case "groups":
            return names | dict.fromkeys(("weight_decay", "lr_scale"), GROUPS)
        case _:
            strength = names.get("strength") if c.adjoint == "implicit" else STRENGTH
            plain = {"strength": strength, "damping": DAMPING, "momentum": 0.8}
            needed = {"regularized-flow": "strength", "heavy-ball": "damping"}
            if c.field == "sgd" and is_odd(c):
                needed["sgd"] = "momentum"
            return {needed[c.field]: plain[needed[c.field]]} if c.field in needed else {}


def slot_names(c: Composition) -> tuple[str, ...]:
    """What a state is made of beside buffers; each part has as many numbers as the params."""
    match c.field:
        case "heavy-ball" | "nesterov-flow":
            return ("u", "v")
        case "sgd":
            return ("u",) if c.options == "plain" and not is_odd(c) else ("u", "momentum")
        case "adam" | "adamw":
            return ("u", "mean", "square", *(("largest",) if is_odd(c) else ()))
        case "rmsprop":
            centered = ("mean",) if is_odd(c) else ()
            return ("u", "square", *centered, *(() if c.options == "plain" else ("momentum",)))
        case _:
            return ("u",)


def predict(params: Any, x: Tensor) -> Tensor:
    """What a tiny network says, shape [examples]."""
    if isinstance(params, Tensor):
        return torch.tanh(x @ params)
    v, shift = params["head"]
    return torch.tanh(x @ params["body"]["w"]) @ v + shift


def train_loss(
    params: Any, batch: Any, hparams: Any, noise: Tensor | None = None, buffers: Any = None
) -> Tensor:
    """The training loss, a mean over the examples but for its penalties."""
    x, y, index = batch
    if noise is not None:
        x = x * (noise > 0.25) / 0.75
    if buffers is not None:
        x = x - buffers[STATISTICS]
    penalty = sum(leaf.pow(4).sum() for leaf in pytree.tree_leaves(params)) / 8
    if hparams is None:
        return (predict(params, x) - y).square().mean() + penalty
    error = (predict(params, x + hparams["penalty"]["shift"]) - y).square()
    squares = sum(leaf.square().sum() for leaf in pytree.tree_leaves(params))
    weighted = (hparams["weights"][index].exp() * error).mean()
    return weighted + penalty + hparams["penalty"]["decay"] * squares


def next_buffers(buffers: Any, batch: Any) -> Any:
    """Running statistics after a batch."""
    return {STATISTICS: 0.7 * buffers[STATISTICS] + 0.3 * batch[0].detach().mean(0)}


def first_buffers() -> Any:
    """Running statistics before the first batch."""
    return {STATISTICS: torch.full((FEATURES,), 0.1, dtype=torch.float64)}


def outer_loss(
    params: Any, batch: Any, hparams: Any = None, observed: Any = (), buffers: Any = None
) -> Tensor:
    """The outer loss; `observed` are lists of tensors."""
    x, y = batch
    if buffers is not None:
        x = x - buffers[STATISTICS]
    value = (predict(params, x) - y).square().mean()
    value = value + 0.3 * sum(leaf.sin().sum() for leaf in pytree.tree_leaves(params))
    for number, parts in enumerate(observed):
        value = value + 0.1 * (number + 1) * sum(part.sin().sum() for part in parts)
    if hparams is None:
        return value
    return value * hparams["scale"] + hparams["penalty"]["decay"].square()


def noise_seed(c: Composition) -> int:
    """The seed of the stream's random numbers; sampled batches share it with their order."""
    return ORDER_SEED if c.batches in ("minibatches", "dataset") else NOISE_SEED


def has_rule(c: Composition) -> bool:
    """Whether the inner optimiser is an update rule."""
    return c.field in RULES


def _with_level(c: Composition, found: Problem) -> Problem:
    pick = (lambda leaf: leaf[0, 0]) if c.tasks else (lambda leaf: leaf[0])
    batch = tuple(pick(leaf) for leaf in (found.x, found.y, found.index))
    start = event_loss(found.params, batch, found.hparams)
    values = {name: getattr(found, name) for name in Problem.__dataclass_fields__}
    return Problem(**{**values, "level": c.event * float(start)})


def event_loss(params: Any, batch: Any, hparams: Any) -> Tensor:
    """What an event looks at: the loss of the first examples, without dropout or statistics."""
    x, y, index = batch
    return train_loss(params, (x[:EXAMPLES], y[:EXAMPLES], index[:EXAMPLES]), hparams)


def event_value(level: float, params: Any, batch: Any, hparams: Any) -> Tensor:
    """What is positive until a solve stops; the threshold depends on hparams."""
    factor = 1.0 if hparams is None else 1 + 0.05 * (hparams["scale"] - 2)
    return event_loss(params, batch, hparams) - level * factor
