"""Keeping the graphs of steps as far as memory allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, final

import torch
from typing_extensions import override

from odeopt.checkpoint.base import Action, CheckpointSchedule, ForwardStream
from odeopt.checkpoint.binomial import Binomial
from odeopt.checkpoint.online import Online
from odeopt.checkpoint.plan import Plan, format_bytes, parse_bytes
from odeopt.checkpoint.simulation import Usage, simulate
from odeopt.checkpoint.uniform import Every
from odeopt.errors import InputError
from odeopt.registry import CHECKPOINTS
from odeopt.tools.memory import free_memory
from odeopt.tools.shown import shown

SHARE = 0.5
"""Of the memory that is free: what is taken at most where nobody has said how much it may be."""

MOST_ON_CPU = 2**29
"""Bytes of graphs that are kept on a CPU where nobody has given a budget: fresh memory is slow, so
that more of it takes longer than the gradients that it saves."""

LITTLE = 2**25
"""Bytes that are taken without looking how much memory is free."""

UNKNOWN_LENGTH = 4096
"""So many steps are expected of a solve that chooses them, when what it keeps is chosen."""

_budget: list[int | None] = [None]


def set_memory_budget(budget: int | str | None) -> None:
    """Say how much memory a solve may take for what it keeps, wherever no other number is given.

    Args:
        budget: bytes, text such as "2GiB", or None for half of what is free at each call.

    Raises:
        InputError: if it is none of these.
    """
    _budget[0] = None if budget is None else parse_bytes(budget, "budget")


def memory_budget(device: torch.device) -> int:
    """Bytes that a call may take for what it keeps: what was set, or half of what is free."""
    return _Room(None, device).nbytes


@dataclass(frozen=True)
class _Room:
    """How much memory there is for what one solve keeps.

    Attributes:
        given: a number of bytes that was asked for; None for that of all solves.
        device: where it is kept.
    """

    given: int | None
    device: torch.device

    @cached_property
    def nbytes(self) -> int:
        """The budget; the memory that is free is looked at once, when it is first asked for."""
        known = self._known
        return int(SHARE * free_memory(self.device)) if known is None else known

    def holds(self, nbytes: int) -> bool:
        """Whether so much fits; what is little does so without a look."""
        return (self._known is None and nbytes <= LITTLE) or nbytes <= self.nbytes

    @property
    def most_graphs(self) -> float:
        """How many bytes graphs may take, however much room there is."""
        return MOST_ON_CPU if self._known is None and self.device.type == "cpu" else math.inf

    @property
    def _known(self) -> int | None:
        """What somebody has said; None if nobody has."""
        return _budget[0] if self.given is None else self.given


class _Chosen(NamedTuple):
    """Which states are kept, where nobody has said it."""

    name: str
    slots: int | None
    """None for one for each step."""
    state_bytes: int

    def plan(self, states: CheckpointSchedule, steps: int) -> Plan:
        """What it costs, of which all is on the device."""
        usage = Usage(stored_states=steps) if self.slots is None else simulate(states, steps)
        slots = steps if self.slots is None else self.slots
        stored, size = usage.stored_states, self.state_bytes
        kept, replayed = stored * size, usage.replayed_steps
        return Plan(self.name, steps, size, {"device": slots}, stored, kept, kept, 0, 0, replayed)


@final
@CHECKPOINTS.register("graphs")
class Graphs(CheckpointSchedule):
    r"""Keep the graph of each step while memory allows, its state where not, and replay the rest.

    A step whose graph is kept is pulled by its Hessian-vector product alone. Of N steps with
    states of s bytes and graphs of g bytes within a budget of B bytes are kept

    - all graphs if $N(g + s) \le B$;
    - else all states if $N s \le B$, and the graphs of as many of the last steps as fit beside;
    - else as many states as fit into B / 2, as `Binomial` has them, and graphs in the other half.

    Without a budget at most 512 MiB of graphs are kept on a CPU, where fresh memory is slow.

    Steps that are made again for their states keep their graphs, too, if there is room. The
    gradient is the same whatever is kept. Graphs are kept where the engine records them: in eager
    kernels, with an exact adjoint, where tasks do not run under `vmap`; elsewhere states are.

    Cost of a step that is pulled from its graph: 1.6 gradients beside the one that made it; from
    its state 2.6; replayed, one more.

    Args:
        states: which states are kept; by default as above.
        budget: B, as bytes or text such as "2GiB"; by default what `set_memory_budget` says, or
            half of the memory that is free when the solve begins.

    Raises:
        InputError: if budget is no number of bytes, or states no schedule other than this one.

    References:
        Griewank and Walther 2008, "Evaluating Derivatives", chapter 12: a step is recorded when
        it is made, or made again to be recorded.
    """

    keeps_graphs = True

    def __init__(
        self, states: CheckpointSchedule | None = None, budget: int | str | None = None
    ) -> None:
        if states is not None and (
            not isinstance(states, CheckpointSchedule) or isinstance(states, Graphs)  # pyright: ignore
        ):
            raise InputError(
                f"states is {shown(states)}; expected None, or the schedule of the states beside"
                " the graphs, such as Every(1) or Binomial(20)."
            )
        self._states = states
        given = None if budget is None else parse_bytes(budget, "budget")
        self._room = _Room(given, torch.device("cpu"))
        self._chosen: _Chosen | None = None  # where the states were not given
        own = self._own
        self.is_mesh, self.needs_length = own.is_mesh, own.needs_length
        self.keeps_all, self.watches, self.tiers = own.keeps_all, own.watches, own.tiers

    def settings(self) -> dict[str, Any]:
        """What it was made with."""
        return {"states": self._states, "budget": self._room.given}

    @override
    def _given(self) -> dict[str, Any]:
        budget = self._room.given
        return {"states": self._states, "budget": None if budget is None else format_bytes(budget)}

    @override
    def on(self, device: torch.device) -> Graphs:
        return self._with(self._states, _Room(self._room.given, device))

    @override
    def fit(self, state_bytes: int, steps: int | None) -> Graphs:
        states, room = self._states, self._room
        if states is not None:
            return self._with(states.fit(state_bytes, steps), room)
        if room.holds((UNKNOWN_LENGTH if steps is None else steps) * state_bytes):
            return self._with(Every(1), room, _Chosen("every state", None, state_bytes))
        slots = max(room.nbytes // 2 // max(state_bytes, 1), 1)
        kind = Online if steps is None else Binomial
        chosen = _Chosen(f"{kind.__name__}({slots})", slots, state_bytes)
        return self._with(kind(slots), room, chosen)

    @override
    def graphs(self, graph_bytes: int, state_bytes: int, steps: int) -> int:
        left = steps * graph_bytes
        if not self._room.holds(left + steps * state_bytes):
            nbytes = self._room.nbytes
            left = max(nbytes - (steps * state_bytes if self.keeps_all else nbytes // 2), 0)
        most = min(left, self._room.most_graphs)
        return int(min(most // graph_bytes, steps)) if graph_bytes else steps

    def _with(
        self, states: CheckpointSchedule | None, room: _Room, chosen: _Chosen | None = None
    ) -> Graphs:
        other = Graphs(states)
        other._room, other._chosen = room, chosen
        return other

    @override
    def coarser(self) -> Graphs:
        return self._with(self._states and self._states.coarser(), self._room)

    @override
    def plan(self, steps: int) -> Plan | None:
        chosen = self._chosen
        return self._own.plan(steps) if chosen is None else chosen.plan(self._own, steps)

    @override
    def forward(self, n: int | None) -> ForwardStream:
        return self._own.forward(n)

    @override
    def backward(self, n: int, kept: Sequence[int]) -> Iterator[Action]:
        return self._own.backward(n, kept)

    @property
    def _own(self) -> CheckpointSchedule:
        return Every(1) if self._states is None else self._states
