"""Steps that are made with their graphs, which are kept until the steps are pulled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from odeopt.engine.stats import Stats
from odeopt.engine.watch import recording, unchanged
from odeopt.solver.base import RecordedStep, StepGradient
from odeopt.tools.memory import measured
from odeopt.tools.seeds import generator_states, same_random_state

Pullback = Callable[[Tensor], StepGradient]


class Tape:
    """The graphs of those steps that the backward sweep comes to next, as many as may be kept.

    The first step that is recorded is measured and looked at. Steps that come too early to be kept
    are made without a graph, in the forward sweep and in replays alike.

    Attributes:
        graph_bytes: the size of its graph; 0 before it, and where it could not be measured.
        sound: whether that step was found to be in order; not so before it, where the loss is
            hidden inside a transform, and where something drew random numbers that no seed fixes.

    Args:
        shared: tensors of the solve, which do not count as part of a graph; the first is a state.
        stats: where it is noted what was kept.
    """

    def __init__(self, shared: Sequence[Tensor], stats: Stats) -> None:
        self._shared, self._stats = shared, stats
        self._capacity_for: Callable[[int], int] = lambda graph_bytes: 0
        self._capacity: int | None = None
        self.sound = False
        self.graph_bytes = 0
        self._next = -1
        self._graphs: dict[int, Pullback] = {}

    def __len__(self) -> int:
        return len(self._graphs)

    def begin(self, last: int, capacity: Callable[[int], int]) -> None:
        """A sweep begins after which, or in which, step `last` is pulled first.

        Args:
            last: the step.
            capacity: how many graphs of a size in bytes may be kept.
        """
        self._next, self._capacity_for = last, capacity

    def wants(self, k: int) -> bool:
        """Whether step k is to be recorded when it is made now."""
        if k > self._next or k in self._graphs:
            return False
        return self._capacity is None or k > self._next - self._capacity

    def record(self, k: int, make: Callable[[], RecordedStep]) -> Tensor:
        """Make step k with its graph; returns the state after it."""
        step = make() if self._capacity is not None else self._measure(make)
        if self.wants(k):
            self._graphs[k] = step.pullback
            stats, now = self._stats, len(self._graphs)
            stats.graph_bytes = max(stats.graph_bytes, now * self.graph_bytes)
        return step.end

    def _measure(self, make: Callable[[], RecordedStep]) -> RecordedStep:
        """The first step, which is looked at; no graph is kept where its size is not known."""

        def look() -> RecordedStep:
            with unchanged(self._shared), recording():
                return make()

        before = generator_states(self._shared[0].device)
        step, size = measured(look, self._shared)
        after = generator_states(self._shared[0].device)
        self.sound = size is not None and same_random_state(before, after)
        self.graph_bytes = size or 0
        self._capacity = 0 if size is None else self._capacity_for(size)
        return step

    def take(self, k: int) -> Pullback | None:
        """The pullback of step k, which is forgotten, if its graph was kept."""
        self._next = k - 1
        pullback = self._graphs.pop(k, None)
        self._stats.recorded_steps += pullback is not None
        return pullback
