"""Keeping the graphs of steps as far as memory allows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import final

import torch
from typing_extensions import override

from odeopt.checkpoint.base import Action, CheckpointSchedule, ForwardStream
from odeopt.checkpoint.binomial import Binomial
from odeopt.checkpoint.online import Online
from odeopt.checkpoint.plan import Plan, parse_bytes
from odeopt.checkpoint.uniform import Every
from odeopt.errors import InputError
from odeopt.registry import CHECKPOINTS
from odeopt.tools.memory import free_memory

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
    kernels, without tasks, with an exact adjoint; elsewhere states are.

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

    def __init__(
        self, states: CheckpointSchedule | None = None, budget: int | str | None = None
    ) -> None:
        if states is not None and (
            not isinstance(states, CheckpointSchedule) or isinstance(states, Graphs)  # pyright: ignore
        ):
            raise InputError(
                f"states is {states!r}; expected None, or the schedule of the states beside the"
                " graphs, such as Every(1) or Binomial(20)."
            )
        self._states = states
        self._budget = None if budget is None else parse_bytes(budget, "budget")
        self._device = torch.device("cpu")
        own = self._own
        self.is_mesh, self.needs_length = own.is_mesh, own.needs_length
        self.keeps_all, self.watches, self.tiers = own.keeps_all, own.watches, own.tiers

    @override
    def on(self, device: torch.device) -> Graphs:
        placed = Graphs(self._states, self._budget)
        placed._device = device
        return placed

    @override
    def fit(self, state_bytes: int, steps: int | None) -> Graphs:
        fitted = (
            self._fit(state_bytes, steps)
            if self._states is None
            else self._states.fit(state_bytes, steps)
        )
        return Graphs(fitted, self._budget).on(self._device)

    def _fit(self, state_bytes: int, steps: int | None) -> CheckpointSchedule:
        expected = UNKNOWN_LENGTH if steps is None else steps
        if self._fits(expected * state_bytes):
            return Every(1)
        slots = max(self._bytes // 2 // max(state_bytes, 1), 1)
        return Online(slots) if steps is None else Binomial(slots)

    @override
    def graphs(self, graph_bytes: int, state_bytes: int, steps: int) -> int:
        room = steps * graph_bytes
        if not self._fits(room + steps * state_bytes):
            states = steps * state_bytes if self.keeps_all else self._bytes // 2
            room = max(self._bytes - states, 0)
        if self._device.type == "cpu" and not self._is_given:
            room = min(room, MOST_ON_CPU)
        return min(room // graph_bytes, steps) if graph_bytes else steps

    def _fits(self, nbytes: int) -> bool:
        return (not self._is_given and nbytes <= LITTLE) or nbytes <= self._bytes

    @property
    def _is_given(self) -> bool:
        """Whether somebody has said how much memory may be taken."""
        return self._budget is not None or _budget[0] is not None

    @functools.cached_property
    def _bytes(self) -> int:
        """The budget; memory is looked at once, and only where something large is kept."""
        if self._budget is not None:
            return self._budget
        if _budget[0] is not None:
            return _budget[0]
        return int(SHARE * free_memory(self._device))

    @override
    def coarser(self) -> Graphs:
        return Graphs(self._states and self._states.coarser(), self._budget)

    @override
    def plan(self, steps: int) -> Plan | None:
        return self._own.plan(steps)

    @override
    def forward(self, n: int | None) -> ForwardStream:
        return self._own.forward(n)

    @override
    def backward(self, n: int, kept: Sequence[int]) -> Iterator[Action]:
        return self._own.backward(n, kept)

    @property
    def _own(self) -> CheckpointSchedule:
        return Every(1) if self._states is None else self._states
