"""Evenly spaced checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

from typing_extensions import override

from odeopt.checkpoint.base import (
    Action,
    Advance,
    CheckpointSchedule,
    ForwardStream,
    Store,
    in_store,
    replay_segments,
    run_through,
)
from odeopt.checkpoint.store import Tier
from odeopt.registry import CHECKPOINTS
from odeopt.tools.arguments import check_integer


@final
@CHECKPOINTS.register("every", example=lambda: Every(3))
class Every(CheckpointSchedule):
    """Keep every k-th state: N / k states; with replay, up to k - 2 more and N - N / k steps.

    `Every(1)` keeps everything and replays nothing. A state is one tensor of shape [d], with tasks
    [tasks, d].

    Cost with an exact adjoint: as above. An interpolating one takes the N / k states as its mesh
    and replays nothing.

    Args:
        k: the distance of kept states in steps.
        store: where they are kept, replayed ones included; `Device()` by default.

    Raises:
        InputError: if k is not a positive integer.

    References:
        Griewank and Walther 2008, "Evaluating Derivatives", chapter 12.
    """

    is_mesh = True
    needs_length = False

    def __init__(self, k: int = 1, store: Tier | None = None) -> None:
        self.k = check_integer(k, "k")
        self.tiers = in_store(store)
        self.keeps_all = k == 1

    @override
    def forward(self, n: int | None) -> ForwardStream:
        for index in run_through(n):
            if index % self.k == 0:
                yield Store(index)
            yield Advance(index, index + 1)

    @override
    def backward(self, n: int, kept: Sequence[int]) -> Iterator[Action]:
        return replay_segments(kept, n)


@final
@CHECKPOINTS.register("density", example=lambda: Density(4))
class Density(CheckpointSchedule):
    """Keep n states at even distances of N / n steps; every state when N < n.

    Cost with an exact adjoint: N - n replayed steps, and up to N / n - 2 more states meanwhile. An
    interpolating adjoint takes the n states as its mesh and replays nothing.

    Args:
        n: the number of kept states, the initial one included.
        store: where they are kept, replayed ones included; `Device()` by default.

    Raises:
        InputError: if n is not a positive integer.

    References:
        Griewank and Walther 2008, "Evaluating Derivatives", chapter 12; Li et al. 2023, appendix A.
    """

    is_mesh = True
    needs_length = True

    def __init__(self, n: int, store: Tier | None = None) -> None:
        self.n = check_integer(n, "n")
        self.tiers = in_store(store)

    def nodes(self, steps: int) -> list[int]:
        """The kept indices for a sweep of that many steps."""
        count = min(self.n, steps)
        return [index * steps // count for index in range(count)]

    @override
    def coarser(self) -> Density:
        return Density((self.n + 1) // 2, self.tiers[0])

    @override
    def forward(self, n: int | None) -> ForwardStream:
        assert n is not None, "needs_length"
        nodes = self.nodes(n)
        for start, stop in zip(nodes, [*nodes[1:], n], strict=True):
            yield Store(start)
            yield Advance(start, stop)

    @override
    def backward(self, n: int, kept: Sequence[int]) -> Iterator[Action]:
        return replay_segments(kept, n)
