"""The same gradients by autograd through the unrolled loop, one task after the other, float64.

Nothing here calls a rule, a solver, an adjoint or a schedule of odeopt; only `mix` and `seeded`
are its own, since they define which random numbers a step draws. Solvers that choose their steps
are followed on the steps that they report.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odeopt.tools.seeds import mix, seeded

from . import formulas
from .composition import Composition
from .problem import (
    BODY,
    EXAMPLES,
    FEATURES,
    GROUPS,
    HEAD,
    LEARNED,
    ORDER_SEED,
    POOL,
    Problem,
    event_value,
    first_buffers,
    has_rule,
    is_odd,
    next_buffers,
    noise_seed,
    option_values,
    outer_loss,
    slot_names,
    train_loss,
)

FIXED_STAGES, TRUNCATED = 4, 2


@dataclass(frozen=True)
class Steps:
    """The steps that a solver has chosen: parts of intervals of the grid.

    Attributes:
        lead: where each begins, as a part of its interval, shape [n] or [tasks, n].
        share: how long it is, likewise.
        parents: its interval.
        stages: how many stages it has; empty where all have the same.
    """

    lead: Tensor
    share: Tensor
    parents: list[int]
    stages: tuple[int, ...] = ()


@dataclass(frozen=True)
class State:
    """A state on the way: parts of the size of the params, and buffers."""

    parts: dict[str, Tensor]
    buffers: Any = None


@dataclass(frozen=True)
class Way:
    """The states of one task, each with its index in the user's grid, and the steps between."""

    states: list[State]
    grid_index: list[int | None]
    starts: list[Tensor]
    lengths: list[Tensor]

    def place(self, index: int) -> int:
        """Where the state with an index in the user's grid is."""
        return self.grid_index.index(index)


class Reference:
    """A composition with leaves that autograd differentiates w.r.t."""

    def __init__(self, c: Composition, problem: Problem, steps: Steps | None = None) -> None:
        self.c, self.problem, self.chosen = c, problem, steps
        self.params = pytree.tree_map(_leaf, problem.params)
        self.hparams = pytree.tree_map(_leaf, problem.hparams)
        self.y, self.dt = _leaf(problem.y), _leaf(problem.dt)
        rates = self.dt
        if c.learned_rates:
            rates = self.dt * self.hparams["rates"].exp()
        self.rates = rates.expand(c.tasks, -1) if c.tasks and rates.ndim == 1 else rates
        self.tasks = list(range(c.tasks)) if c.tasks else [None]
        self._noise: dict[int, list[Tensor]] = {}
        self._orders: dict[int, Tensor] = {}
        self._known: dict[int | None, tuple[list[Tensor], list[Tensor], list[int]]] = {}

    @property
    def leaves(self) -> list[Tensor]:
        """Everything that is differentiated but for the step sizes."""
        trees = (self.params, self.hparams, self.y)
        return [leaf for leaf in pytree.tree_leaves(trees) if isinstance(leaf, Tensor)]

    @property
    def param_leaves(self) -> list[Tensor]:
        """Those of them that are parameters."""
        return pytree.tree_leaves(self.params)

    def lengths(self, task: int | None) -> list[Tensor]:
        """The step sizes of a task."""
        return self._times(task)[1]

    def flat(self, tree: Any) -> Tensor:
        """A tree like the params as a vector."""
        return torch.cat([leaf.reshape(-1) for leaf in pytree.tree_leaves(tree)])

    def like_params(self, flat: Tensor) -> Any:
        """A vector as a tree like the params."""
        leaves, spec = pytree.tree_flatten(self.params)
        parts = flat.split([leaf.numel() for leaf in leaves])
        found = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return pytree.tree_unflatten(found, spec)

    def start(self) -> State:
        """The state before the first step."""
        given = self.problem.state
        u = self.flat(self.params)
        parts = {name: torch.zeros_like(u).detach() for name in slot_names(self.c)} | {"u": u}
        return State(parts if given is None else dict(given), first_buffers())

    def outer(self, task: int | None, observed: list[State], end: State) -> Tensor:
        """The outer loss of a task."""
        batch = self.problem.outer
        if task is not None:
            batch = tuple(leaf[task] for leaf in batch)
        buffers = pytree.tree_map(torch.detach, end.buffers) if self.c.buffers else None
        parts = [list(state.parts.values()) for state in observed]
        params = self.like_params(end.parts["u"])
        return outer_loss(params, batch, self.hparams, parts, buffers)

    def make_steps(self, task: int | None) -> Way:
        """The unrolled loop of a task, with the steps that the adjoint does not see taken out."""
        begin = state = self.start()
        starts, lengths, parents = self._times(task)
        counts = [self._counts(task, k, length) for k, length in enumerate(lengths)]
        seen = {"truncated": TRUNCATED, "first-order": -1}.get(self.c.adjoint, len(lengths))
        way = Way([state], [0], starts, lengths)
        for k, length in enumerate(lengths):
            if not has_rule(self.c) or k < self._made(task):
                state = self.step(task, k, length, state)
            if sum(counts[k:]) > seen:
                state = _through(begin, state)
            way.states.append(state)
            last = k + 1 == len(parents) or parents[k + 1] != parents[k]
            way.grid_index.append(parents[k] + 1 if last else None)
        return way

    def step(self, task: int | None, k: int, length: Tensor, state: State) -> State:
        """The state after the task's own k-th step, of a length."""
        if has_rule(self.c):
            return self._update(task, k, length, state)
        t = self._times(task)[0][k]
        velocity = partial(self.velocity, task, k)
        if self.c.solver in ("stabilized-rk", "stabilized-rk-fixed"):
            stages = self.chosen.stages[k] if self.chosen else FIXED_STAGES
            step = partial(formulas.runge_kutta_chebyshev, stages)
        elif self.c.solver == "dormand-prince":
            step = _fine
        else:
            step = formulas.STEPS[self.c.solver]
        return self.unpack(step(velocity, t, length, self.pack(state)))

    def pack(self, state: State) -> Tensor:
        """The state of a field as a vector."""
        return torch.cat(list(state.parts.values()))

    def unpack(self, y: Tensor) -> State:
        """A vector as the state of a field."""
        names = slot_names(self.c)
        return State(dict(zip(names, y.chunk(len(names)), strict=True)))

    def velocity(self, task: int | None, k: int, t: Tensor, y: Tensor) -> Tensor:
        """The velocity of a field on its vector."""
        c, state = self.c, self.unpack(y)
        u = state.parts["u"]
        o = self.options()
        g = self._gradient(u, self.batch(task, k), self._noise_at(task, k, 0))
        g = g + o.get("weight_decay", 0.0) * u
        if c.field == "gradient-flow":
            return -g
        if c.field == "regularized-flow":
            own = c.hparams and is_odd(c)
            center = self.flat(self.hparams["center"] if own else self.params)
            return -g - o["strength"] * (u - center)
        v = state.parts["v"]
        if c.field == "heavy-ball":
            return torch.cat([v, -o["damping"] * v - g])
        shift = 1.0 if c.options == "plain" else 0.5
        return torch.cat([v, -3 / (t + shift) * v - g])

    def options(self) -> dict[str, Any]:
        """The numbers of the field, of a shape that fits a vector."""
        found: dict[str, Any] = {}
        for name, value in option_values(self.c).items():
            if value == LEARNED:
                found[name] = self.hparams["options"][name]
            elif value == GROUPS and self.c.shape == "tree":
                learned = self.hparams["options"][name]
                ones = learned.new_ones
                found[name] = torch.cat([BODY * ones(6), HEAD * ones(2), learned.reshape(1)])
            elif value == GROUPS:
                found[name] = self.hparams["entries"]
            else:
                found[name] = value
        return found

    def batch(self, task: int | None, k: int) -> Any:
        """The batch of the user's k-th step."""
        c, trees = self.c, (self.problem.x, self.y, self.problem.index)
        each = c.batches in ("indexed", "stacked")
        found = tuple(leaf[k if each else 0] for leaf in trees)
        if task is not None:
            return tuple(leaf[task] for leaf in found)
        if c.batches not in ("minibatches", "dataset"):
            return found
        epoch, position = divmod(k, POOL // EXAMPLES)
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(mix(ORDER_SEED, epoch))
            self._orders[epoch] = torch.randperm(POOL, generator=generator)
        chosen = self._orders[epoch][position * EXAMPLES : (position + 1) * EXAMPLES]
        return tuple(leaf[chosen] for leaf in found)

    def event(self, task: int | None, state: State) -> Tensor:
        """What is positive until the task stops."""
        y = self.y if self.c.batches == "tensor" else self.problem.y
        batch = (self.problem.x[0], y[0], self.problem.index[0])
        if task is not None:
            batch = tuple(leaf[task] for leaf in batch)
        params = self.like_params(state.parts["u"])
        return event_value(self.problem.level, params, batch, self.hparams)

    def _update(self, task: int | None, k: int, lr: Tensor, state: State) -> State:
        c, parts, buffers = self.c, dict(state.parts), state.buffers
        u, whole = parts.pop("u"), self.batch(task, k)
        size, g = EXAMPLES // c.micro_batches, torch.zeros_like(u)
        for piece in range(c.micro_batches):
            batch = tuple(leaf[piece * size : (piece + 1) * size] for leaf in whole)
            own = buffers if c.buffers else None
            noise = self._noise_at(task, k, piece)
            g = g + self._gradient(u, batch, noise, own) / c.micro_batches
            buffers = next_buffers(buffers, batch)
        g = formulas.TRANSFORMS[c.transform](g)
        rule = formulas.RULES[c.field]
        u, parts = rule(g, u, parts, k, lr, self.options(), is_odd(c))
        return State({"u": u, **parts}, buffers)

    def _gradient(self, u: Tensor, batch: Any, noise: Tensor | None, buffers: Any = None) -> Tensor:
        with torch.enable_grad():
            point = u if u.requires_grad else u.detach().requires_grad_()
            loss = train_loss(self.like_params(point), batch, self.hparams, noise, buffers)
            return torch.autograd.grad(loss, point, create_graph=True)[0]

    def _times(self, task: int | None) -> tuple[list[Tensor], list[Tensor], list[int]]:
        """The start and length of each step, and its interval of the grid."""
        if task not in self._known:
            self._known[task] = self._find_times(task)
        return self._known[task]

    def _find_times(self, task: int | None) -> tuple[list[Tensor], list[Tensor], list[int]]:
        rates = self.rates if task is None else self.rates[task]
        ends = torch.cat([rates.new_zeros(1), rates.cumsum(0)])
        if self.chosen is None:
            return list(ends[:-1]), list(rates), list(range(len(rates)))
        lead, share = self.chosen.lead, self.chosen.share
        if task is not None:
            lead, share = lead[task], share[task]
        parents = torch.tensor(self.chosen.parents, dtype=torch.long)
        length = rates[parents]
        return list(ends[parents] + lead * length), list(share * length), list(self.chosen.parents)

    def _counts(self, task: int | None, k: int, length: Tensor) -> bool:
        """Whether a step is one that the task makes, rather than one in which it waits."""
        return bool(length > 0) if self.chosen else k < self._made(task)

    def _made(self, task: int | None) -> int:
        stops = self.problem.stops
        if stops is None:
            return 10**9
        return int(stops if stops.ndim == 0 else stops[task])

    def _noise_at(self, task: int | None, k: int, piece: int) -> Tensor | None:
        """The uniform numbers of a piece of a step: those of all tasks are drawn together."""
        if not self.c.random:
            return None
        if k not in self._noise:
            lead = (self.c.tasks,) if self.c.tasks else ()
            shape = (*lead, EXAMPLES // self.c.micro_batches, FEATURES)
            with seeded(mix(noise_seed(self.c), k), torch.device("cpu")):
                pieces = range(self.c.micro_batches)
                self._noise[k] = [torch.rand(shape, dtype=torch.float64) for _ in pieces]
        found = self._noise[k][piece]
        return found if task is None else found[task]


def _through(begin: State, end: State) -> State:
    """The numbers of one state, with the derivative of another."""
    pairs = {name: (part, end.parts[name]) for name, part in begin.parts.items()}
    moved = {name: one + (two - one).detach() for name, (one, two) in pairs.items()}
    return State(moved, end.buffers)


def _leaf(value: Any) -> Any:
    return value.detach().clone().requires_grad_() if _floats(value) else value


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _fine(f: formulas.Velocity, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    """A step of the flow itself, nearly to rounding."""
    parts = 32
    for i in range(parts):
        y = formulas.dormand_prince(f, t + h * (i / parts), h / parts, y)
    return y
