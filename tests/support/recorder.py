"""A checkpoint schedule that looks at the forward sweep."""

from __future__ import annotations

from odeopt import Every
from odeopt.checkpoint import Advance, CheckpointSchedule, Store


class Recorder(CheckpointSchedule):
    """Every state, and the times that the forward sweep went through."""

    is_mesh = True
    needs_length = False

    def __init__(self):
        self.times = []

    def forward(self, n):
        index = 0
        while n is None or index < n:
            progress = yield Store(index)
            self.times.append(progress.t)
            yield Advance(index, index + 1)
            index += 1

    def backward(self, n, kept):
        return Every(1).backward(n, kept)
