"""What an inner optimisation is put together from, drawn at random."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any

RULES = ("sgd", "adam", "adamw", "rmsprop")
SECOND_ORDER = ("heavy-ball", "nesterov-flow")
GRID_SOLVERS = ("torchdiffeq", "dormand-prince")
OWN_STEPS = ("adaptive", "stabilized-rk")
REAL_SPECTRUM = ("chebyshev-2", "chebyshev-3", "stabilized-rk", "stabilized-rk-fixed")
EXACT = ("discrete", "truncated")
CONTINUOUS = (
    "continuous-euler",
    "continuous-modified-euler",
    "continuous-midpoint",
    "continuous-rk4",
)
NO_MESH = ("binomial", "online", "memory-budget")


@dataclass(frozen=True)
class Composition:
    """One call of odeopt, in plain values; its `repr` makes it again. Defaults are the simplest."""

    seed: int = 0
    """Of every tensor."""
    shape: str = "vector"
    """Of the params: one tensor, or a tree of three."""
    field: str = "gradient-flow"
    options: str = "plain"
    """The options of the field: its defaults, numbers, selectors of hparams, or one per group."""
    variant: int = 0
    """Which of its flags are set, e.g. nesterov, amsgrad, centered."""
    transform: str = "none"
    """Of the gradient of a rule."""
    solver: str = "euler"
    adjoint: str = "discrete"
    differentiation: str = "reverse"
    checkpoints: str = "every"
    slots: int = 1
    store: str = "device"
    steps: int = 1
    rates: str = "constant"
    """How step sizes change; in "warm-up" and "gaps" some are exactly zero."""
    stops: bool = False
    """Whether the grid ends before its steps do."""
    tasks: int = 0
    """0 is a call without tasks."""
    own: str = "nothing"
    """What each task has for itself beside its batch."""
    batches: str = "tensor"
    random: bool = False
    """Whether the loss has dropout."""
    micro_batches: int = 1
    buffers: bool = False
    hparams: bool = False
    observe: tuple[int, ...] = ()
    warm: bool = False
    """Whether the solve begins in a state that is given."""
    event: float = 0.0
    """Stop where the loss comes down to this part of what it is at first; 0 for no event."""
    batch_grad: bool = False
    learned_rates: bool = False
    road: str = "value_and_grad"
    again: bool = False
    """Whether the same optimiser is called a second time, which must give the same bits."""
    compile: str = "none"
    probe: bool = True

    def changes(self) -> dict[str, Any]:
        """What is not the default."""
        pairs = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        return {name: value for name, value, default in pairs if value != default}

    def __repr__(self) -> str:
        return f"Composition({', '.join(f'{k}={v!r}' for k, v in self.changes().items())})"


CHOICES: dict[str, tuple[Any, ...]] = {
    "shape": ("vector", "tree"),
    "field": ("gradient-flow", "gradient-flow", "regularized-flow", *SECOND_ORDER, *RULES),
    "options": ("plain", "numbers", "learned", "groups"),
    "variant": (0, 1, 2, 3),
    "transform": ("none", "none", "clip-norm", "clip-value"),
    "solver": (
        *("euler", "modified-euler", "midpoint", "rk4", "chebyshev-2", "chebyshev-3"),
        *("stabilized-rk-fixed", *OWN_STEPS, *GRID_SOLVERS),
    ),
    "adjoint": (
        *(*("discrete",) * 8, *("truncated",) * 2),
        *("first-order", "backsolve", "implicit", *CONTINUOUS),
    ),
    "differentiation": ("reverse", "reverse", "forward-over-reverse"),
    "checkpoints": ("every", "density", "graded", "binomial", "online", "memory-budget", "graphs"),
    "slots": (1, 2, 3, 4),
    "store": ("device", "device", "host", "disk", "mixed"),
    "steps": (0, 1, 2, 2, 3, 3, 4, 5, 7),
    "rates": ("constant", "warm-up", "decay", "gaps", "uniform"),
    "stops": (False, False, False, True),
    "tasks": (0, 0, 0, 0, 1, 2, 3, 4),
    "own": ("nothing", "rates", "horizons"),
    "batches": ("tensor", "tensor", "constant", "indexed", "stacked", "minibatches", "dataset"),
    "random": (False, True),
    "micro_batches": (1, 1, 2, 4),
    "buffers": (False, False, True),
    "hparams": (False, True, True),
    "observe": (False, False, True),
    "warm": (*(False,) * 9, True),
    "event": (0.0, 0.0, 0.0, 0.97, 0.8, 1.5),
    "batch_grad": (False, False, True),
    "learned_rates": (False, True),
    "road": (*("value_and_grad",) * 3, *("solve",) * 2, "func", "bilevel", "second"),
    "again": (*(False,) * 7, True),
    "compile": (*("none",) * 39, "trace"),
    "probe": (True, True, False),
}
"""The values of each field, as often as they are to be drawn."""

WILD = 0.04
"""The share of compositions in which nobody looks whether the choices fit together."""


def draw(random: Random) -> Composition:
    """A composition; nearly always one that odeopt accepts."""
    chosen = {name: random.choice(values) for name, values in CHOICES.items()}
    steps = chosen["steps"]
    picked = random.sample(range(steps + 1), random.randint(1, min(3, steps + 1)))
    chosen["observe"] = tuple(sorted(picked)) if chosen["observe"] else ()
    found = Composition(seed=random.randrange(10**6), **chosen)
    return tidy(found) if random.random() < WILD else fitting(found, random)


def fitting(c: Composition, random: Random) -> Composition:
    """The composition, with other choices where they do not fit together."""
    for fit in (_fit_adjoint, _fit_field, _fit_solver, _fit_data, _fit_road, _fit_event):
        c = replace(c, **fit(c, random))
    return tidy(c)


def tidy(c: Composition) -> Composition:
    """The composition without what would have no effect, or no meaning outside odeopt."""
    for part in (_tidy_field, _tidy_data, _tidy_tasks, _tidy_road):
        c = replace(c, **part(c))
    return c


def _tidy_field(c: Composition) -> dict[str, Any]:
    changes: dict[str, Any] = {"options": c.options}
    if c.adjoint == "implicit" and c.field == "gradient-flow":
        changes["field"] = "regularized-flow"  # whose Hessian is positive definite
    if c.field in RULES:
        changes["solver"] = "euler"
    else:
        changes |= {"transform": "none", "micro_batches": 1, "buffers": False}
    if c.options == "groups" and c.field not in RULES:
        changes["options"] = "learned"
    if changes["options"] in ("learned", "groups") and not c.hparams:
        changes["options"] = "numbers"
    return changes


def _tidy_data(c: Composition) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if c.batches == "tensor":
        changes["random"] = False
    else:
        changes["batch_grad"] = False
    if c.event:  # it looks at the batch, whose gradient would lack its part
        changes["batch_grad"] = False
    if c.store == "mixed" and c.checkpoints != "memory-budget":
        changes["store"] = "disk"
    if c.checkpoints == "graphs":
        changes["store"] = "device"
    if c.adjoint in CONTINUOUS and c.checkpoints == "graded":
        changes["checkpoints"] = "density"  # its mesh is odeopt's own business
    return changes


def _tidy_tasks(c: Composition) -> dict[str, Any]:
    if c.tasks == 0:
        return {"own": "nothing"}
    changes: dict[str, Any] = {}
    if c.batches in ("minibatches", "dataset"):
        changes["batches"] = "indexed"
    if c.rates == "uniform" and c.own == "rates":
        changes["own"] = "horizons"
    return changes


def _tidy_road(c: Composition) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if c.road != "value_and_grad" or c.adjoint != "discrete":
        changes["event"] = 0.0
    if c.road == "bilevel":  # one inner problem: it takes a task dimension for one of the data
        changes |= {"warm": False, "tasks": 0, "own": "nothing"}
    unrolled = c.adjoint in (*EXACT, "first-order")
    if c.road not in ("solve", "bilevel", "second") or not c.hparams or not unrolled:
        changes["learned_rates"] = False
    return changes


def _fit_field(c: Composition, random: Random) -> dict[str, Any]:
    if c.field in RULES:
        fits = c.adjoint in (*EXACT, "first-order")
        return {} if fits else {"adjoint": random.choice(EXACT)}
    if c.field not in SECOND_ORDER:
        return {}
    changes: dict[str, Any] = {"differentiation": "reverse"}
    if c.solver in REAL_SPECTRUM:
        changes["solver"] = "rk4"
    if c.adjoint == "implicit":
        changes["adjoint"] = "discrete"
    return changes


def _fit_solver(c: Composition, random: Random) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if c.field not in RULES and c.solver in GRID_SOLVERS:
        changes["own"] = "nothing"
        if c.adjoint in EXACT:
            changes["adjoint"] = random.choice(CONTINUOUS)
        if c.checkpoints in NO_MESH:
            changes["checkpoints"] = random.choice(("every", "density"))
    if c.field not in RULES and c.batches != "tensor":
        fixed = c.solver not in (*GRID_SOLVERS, *OWN_STEPS)
        if not fixed or changes.get("adjoint", c.adjoint) not in (*EXACT, "first-order"):
            changes["batches"] = "tensor"
        elif c.solver != "euler":
            changes["random"] = False
            changes["batches"] = "indexed" if c.batches == "constant" else c.batches
    return changes


def _fit_adjoint(c: Composition, random: Random) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if c.adjoint == "implicit":
        changes |= {"field": "regularized-flow", "observe": ()}
    return changes


def _fit_data(c: Composition, random: Random) -> dict[str, Any]:
    if c.warm and c.observe:
        return {"observe": ()}
    return {}


def _fit_road(c: Composition, random: Random) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if c.road == "bilevel":
        changes |= {"tasks": 0, "hparams": True, "observe": (), "warm": False, "event": 0.0}
    if c.road in ("solve", "func", "second"):
        changes["store"] = "device"
    if c.road == "func":
        changes["warm"] = False
        if c.solver in OWN_STEPS and c.field not in RULES:
            changes["road"] = "solve"
    return changes


def _fit_event(c: Composition, random: Random) -> dict[str, Any]:
    if c.event == 0:
        return {}
    fixed = c.field in RULES or c.solver not in (*GRID_SOLVERS, *OWN_STEPS)
    if not fixed or c.road != "value_and_grad" or c.adjoint != "discrete":
        return {"event": 0.0}
    return {"observe": (), "stops": False, "batch_grad": False}


def simpler(c: Composition) -> list[Composition]:
    """The composition with one field each nearer to its default."""
    found: list[Composition] = []
    for part in dataclasses.fields(c):
        now, default = getattr(c, part.name), part.default
        for value in _nearer(now, default):
            found.append(tidy(replace(c, **{part.name: value}, **_follow(c, part.name, value))))
    return [each for each in found if each != c]


def _nearer(now: Any, default: Any) -> list[Any]:
    if now == default:
        return []
    if isinstance(now, int) and not isinstance(now, bool) and now > default + 1:
        return [default, (now + default) // 2, now - 1]
    return [default]


def _follow(c: Composition, name: str, value: Any) -> dict[str, Any]:
    """What must change as well, for the composition to keep a meaning."""
    if name == "steps":
        return {"observe": tuple(k for k in c.observe if k <= value)}
    return {}
