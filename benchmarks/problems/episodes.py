"""The meta-regression protocol of the paper's Figure 2.

100 functions for meta-training and 100 others for the meta-test, each with a pool of 1000
training and 1000 validation points; inputs and targets of all 200 are standardised together, the
test functions included, as in the released code. There each training function comes in ten
episodes, with other points of its pools in each, so that up to ten times the stated "shots" are
seen; the paper's text has one set of points per function. These are the protocols "code" and
"text". The random streams are this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from benchmarks.problems import alpine, cosmixture
from benchmarks.problems.functions import Family, Standardisation, join
from benchmarks.problems.tasks import Batch, Task

FUNCTIONS = 100
"""For meta-training, and as many for the meta-test."""

POOL = 1000
EPISODES = {"code": 10, "text": 1}
"""Episodes per training function."""

FUNCTION_SEED, POINT_SEED = 100, 200


@dataclass(frozen=True)
class _Drawn:
    """One function's points in standardised units."""

    train: Batch
    validation: Batch
    test: Batch


class Regression:
    """The tasks of one setting, in float64.

    Args:
        family: "cosmixture" or "alpine".
        protocol: "code" or "text".
        shots: Training points per task, and as many validation points.
    """

    def __init__(self, family: str, protocol: str, shots: int) -> None:
        if not 0 < shots <= POOL:
            raise ValueError(f"shots is {shots}; expected 1 to {POOL}")
        self._protocol, self._shots = protocol, shots
        self._functions = _draw(_family(family, protocol), protocol)

    @property
    def episodes(self) -> int:
        """The number of training tasks."""
        return FUNCTIONS * EPISODES[self._protocol]

    def train_batch(self, indices: Sequence[int]) -> Task:
        """Training tasks, stacked: episode i is of function i mod 100."""
        found = [self._functions[index % FUNCTIONS] for index in indices]
        return Task(
            _pick([f.train for f in found], self._shots, [2 * i for i in indices]),
            _pick([f.validation for f in found], self._shots, [2 * i + 1 for i in indices]),
        )

    def held_out_support(self) -> Batch:
        """Training points of the test tasks, [100, shots, ...]."""
        tests = self._functions[FUNCTIONS:]
        return _pick([f.train for f in tests], self._shots, list(range(0, 2 * FUNCTIONS, 2)))

    def held_out_grid(self) -> Batch:
        """Where the test tasks are evaluated: 31 x 31 points, or 100 random ones ("text")."""
        tests = self._functions[FUNCTIONS:]
        return Batch(torch.stack([f.test.x for f in tests]), torch.stack([f.test.y for f in tests]))

    def constant_rmse(self) -> float:
        """The nRMSE of predicting the overall mean, averaged over the test tasks."""
        return self.held_out_grid().y.square().mean((1, 2)).sqrt().mean().item()


def _family(name: str, protocol: str) -> Family:
    if name == "alpine":
        return alpine.family(protocol)
    if name != "cosmixture":
        raise ValueError(f"unknown family {name!r}; expected 'cosmixture' or 'alpine'")
    ranges = cosmixture.PROTOCOLS[protocol]
    return Family(lambda generator: cosmixture.draw_function(ranges, generator), radius=1.0)


def _draw(family: Family, protocol: str) -> list[_Drawn]:
    functions = Generator().manual_seed(FUNCTION_SEED)
    points = Generator().manual_seed(POINT_SEED)
    drawn: list[_Drawn] = []
    for _ in range(2 * FUNCTIONS):
        f = family.draw(functions)
        train, validation = (family.sample(f, POOL, points) for _ in range(2))
        test = family.grid(f) if protocol == "code" else family.sample(f, 100, points)
        drawn.append(_Drawn(train, validation, test))
    scaled = Standardisation.of(join([b for d in drawn for b in (d.train, d.validation, d.test)]))
    return [_Drawn(scaled(d.train), scaled(d.validation), scaled(d.test)) for d in drawn]


def _pick(pools: Sequence[Batch], count: int, seeds: Sequence[int]) -> Batch:
    """Different random points of each pool, stacked."""
    chosen: list[tuple[Tensor, Tensor]] = []
    for pool, seed in zip(pools, seeds, strict=True):
        order = torch.randperm(POOL, generator=Generator().manual_seed(seed))[:count]
        chosen.append((pool.x[order], pool.y[order]))
    return Batch(torch.stack([x for x, _ in chosen]), torch.stack([y for _, y in chosen]))
