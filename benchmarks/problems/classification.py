"""Classification with a training, a validation and a test set; and wrong labels in the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from benchmarks.problems import digits
from benchmarks.problems.models import Model, Parameters
from benchmarks.problems.tasks import Batch


class Split(NamedTuple):
    """Three sets of examples that share none."""

    train: Batch
    validation: Batch
    test: Batch

    def to(self, device: torch.device, dtype: torch.dtype) -> Split:
        """The sets on a device; labels keep their integer type."""
        return Split(*(part.to(device, dtype) for part in self))


class Corrupted(NamedTuple):
    """Labels, and which of them are wrong."""

    y: Tensor
    wrong: Tensor


def split_digits(train: int, validation: int, seed: int) -> Split:
    """Digits as rows of 64 numbers: random ones by the first writers; the others' for the test.

    Args:
        train: How many for training.
        validation: How many others for validation.
        seed: Fixes which.

    Raises:
        ValueError: The first writers wrote fewer.
    """
    whole = digits.images()
    mine = Batch(*(leaf[digits.PARTS["train"]] for leaf in (whole.x.flatten(1), whole.y)))
    test = Batch(*(leaf[digits.PARTS["test"]] for leaf in (whole.x.flatten(1), whole.y)))
    if train + validation > len(mine.y):
        raise ValueError(f"{train} + {validation} examples of {len(mine.y)}")
    order = torch.randperm(len(mine.y), generator=Generator().manual_seed(seed))
    first, second = order[:train], order[train : train + validation]
    return Split(take(mine, first), take(mine, second), test)


def corrupt(y: Tensor, share: float, kind: str, classes: int, seed: int) -> Corrupted:
    """Labels of which a share, drawn at random, is replaced by wrong ones.

    Args:
        y: The right labels.
        share: Of the labels, 0 to 1.
        kind: "uniform": by any other class; "next": by the following class, always.
        classes: How many classes there are.
        seed: Fixes which labels, and by what.
    """
    if kind not in ("uniform", "next"):
        raise ValueError(f"unknown kind {kind!r}; expected 'uniform' or 'next'")
    generator = Generator().manual_seed(seed)
    count = round(share * len(y))
    chosen = torch.randperm(len(y), generator=generator)[:count]
    highest = classes if kind == "uniform" else 2
    shift = torch.zeros_like(y)
    shift[chosen] = torch.randint(1, highest, (count,), generator=generator)
    return Corrupted((y + shift) % classes, shift > 0)


def take(batch: Batch, chosen: Tensor) -> Batch:
    """Some examples, by indices or a mask."""
    return Batch(batch.x[chosen], batch.y[chosen])


def join(first: Batch, second: Batch) -> Batch:
    """The examples of both."""
    return Batch(torch.cat([first.x, second.x]), torch.cat([first.y, second.y]))


def example_losses(model: Model, params: Parameters, batch: Batch) -> Tensor:
    """The cross-entropy of each example."""
    return functional.cross_entropy(model.apply(params, batch.x), batch.y, reduction="none")


def mean_loss(model: Model) -> Callable[[Parameters, Batch], Tensor]:
    """The mean cross-entropy as a function of parameters and examples."""
    return lambda params, batch: example_losses(model, params, batch).mean()


def accuracy(model: Model, params: Parameters, batch: Batch) -> float:
    """The share of right labels."""
    return (model.apply(params, batch.x).argmax(-1) == batch.y).double().mean().item()
