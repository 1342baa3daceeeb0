"""scikit-learn's 8x8 handwritten digits: few-class tasks; three sets, and wrong labels in one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs]
from torch import Generator, Tensor
from torch.nn import functional

from benchmarks.problems.models import Model, Parameters
from benchmarks.problems.tasks import Batch, Task, stack, take


@cache
def images() -> Batch:
    """All digits: x in [0, 1], shape [1797, 1, 8, 8], and their labels 0 to 9."""
    x, y = load_digits(return_X_y=True)
    return Batch(torch.tensor(x / 16).reshape(-1, 1, 8, 8), torch.tensor(y, dtype=torch.int64))


FIRST = 1200
"""How many images come from the first writers; the last 597 were written by other people."""


def task(seed: int, ways: int = 5, shots: int = 10) -> Task:
    """A task on random classes of digits, relabelled 0 to ways - 1 in random order.

    There are so many training images per class, and as many others for validation; x has the shape
    [ways * shots, 1, 8, 8], sorted by class.
    """
    generator, whole = Generator().manual_seed(seed), images()
    drawn: list[Tensor] = []
    for label in torch.randperm(10, generator=generator)[:ways]:
        members = torch.nonzero(whole.y == label).flatten()
        drawn.append(members[torch.randperm(len(members), generator=generator)[: 2 * shots]])
    labels, chosen = torch.arange(ways).repeat_interleave(shots), torch.stack(drawn)
    halves = chosen[:, :shots], chosen[:, shots:]
    return Task(*(Batch(whole.x[half.flatten()], labels.clone()) for half in halves))


def tasks(count: int, ways: int = 5, shots: int = 10) -> Task:
    """The tasks of the first seeds, stacked along a leading dimension."""
    return stack([task(seed, ways, shots) for seed in range(count)])


def flatten(task: Task) -> Task:
    """The same task, or stack of tasks, with x of shape [..., 64] for a perceptron."""
    return Task(*(Batch(batch.x.flatten(-3), batch.y) for batch in task))


class Split(NamedTuple):
    """Three sets of examples that share none."""

    train: Batch
    validation: Batch
    test: Batch


class Labels(NamedTuple):
    """Labels, and which of them are wrong."""

    y: Tensor
    wrong: Tensor


def split_digits(train: int, validation: int, seed: int) -> Split:
    """Digits as rows of 64 numbers: random ones by the first writers; the others' for the test.

    Raises:
        ValueError: The first writers wrote fewer.
    """
    whole = images()
    rows = Batch(whole.x.flatten(1), whole.y)
    mine, test = take(rows, slice(FIRST)), take(rows, slice(FIRST, None))
    if train + validation > len(mine.y):
        raise ValueError(f"{train} + {validation} examples of {len(mine.y)}")
    order = torch.randperm(len(mine.y), generator=Generator().manual_seed(seed))
    first, second = order[:train], order[train : train + validation]
    return Split(take(mine, first), take(mine, second), test)


def corrupt(y: Tensor, share: float, kind: str, classes: int, seed: int) -> Labels:
    """Labels of which a share, drawn at random, is replaced by wrong ones.

    They are any other of so many classes ("uniform"), or always the following one ("next").
    """
    if kind not in ("uniform", "next"):
        raise ValueError(f"unknown kind {kind!r}; expected 'uniform' or 'next'")
    generator = Generator().manual_seed(seed)
    count = round(share * len(y))
    chosen = torch.randperm(len(y), generator=generator)[:count]
    highest = classes if kind == "uniform" else 2
    shift = torch.zeros_like(y)
    shift[chosen] = torch.randint(1, highest, (count,), generator=generator)
    return Labels((y + shift) % classes, shift > 0)


def example_losses(model: Model, params: Parameters, batch: Batch) -> Tensor:
    """The cross-entropy of each example."""
    return functional.cross_entropy(model.apply(params, batch.x), batch.y, reduction="none")


def mean_loss(model: Model) -> Callable[..., Tensor]:
    """The mean cross-entropy as a function of parameters and examples; hparams play no part."""
    return lambda params, batch, *_hparams: example_losses(model, params, batch).mean()


def accuracy(model: Model, params: Parameters, batch: Batch) -> float:
    """The share of right labels."""
    return (model.apply(params, batch.x).argmax(-1) == batch.y).double().mean().item()
