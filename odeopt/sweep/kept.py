"""The states that are kept between the sweeps."""

from __future__ import annotations

from torch import Tensor

from odeopt.stats import Stats


class Kept:
    """Kept states by index; records the most there were at one time."""

    def __init__(self, stats: Stats) -> None:
        self._states: dict[int, Tensor] = {}
        self.stats = stats
        self._bytes = 0

    def store(self, index: int, state: Tensor) -> None:
        """Keep a state."""
        self.free(index)
        self._states[index] = state
        self._bytes += state.numel() * state.element_size()
        self.stats.stored_states = max(self.stats.stored_states, len(self._states))
        self.stats.stored_bytes = max(self.stats.stored_bytes, self._bytes)

    def free(self, index: int) -> None:
        """Drop a state, if it is there."""
        state = self._states.pop(index, None)
        if state is not None:
            self._bytes -= state.numel() * state.element_size()

    def __getitem__(self, index: int) -> Tensor:
        return self._states[index]

    def indices(self) -> list[int]:
        """The indices of kept states, sorted."""
        return sorted(self._states)
