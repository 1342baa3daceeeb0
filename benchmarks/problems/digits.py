"""Few-class tasks made of scikit-learn's 8x8 handwritten digits (1797 images, ten classes)."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs]
from torch import Generator, Tensor

from benchmarks.problems.tasks import Batch, Task, stack


@cache
def images() -> Batch:
    """All digits: x in [0, 1], shape [1797, 1, 8, 8], and their labels 0 to 9."""
    x, y = load_digits(return_X_y=True)
    return Batch(torch.tensor(x / 16).reshape(-1, 1, 8, 8), torch.tensor(y, dtype=torch.int64))


PARTS = {"all": slice(None), "train": slice(0, 1200), "test": slice(1200, None)}
"""Which images tasks are drawn from; the last 597 were written by other people."""


def task(seed: int, ways: int = 5, shots: int = 10, part: str = "all") -> Task:
    """A task on random classes, relabelled 0 to ways - 1 in random order.

    Args:
        seed: Fixes the classes and the images.
        ways: How many classes.
        shots: How many training images per class, and how many others for validation.
        part: A name in `PARTS`.

    Returns:
        Batches with x of shape [ways * shots, 1, 8, 8], sorted by class.
    """
    generator = Generator().manual_seed(seed)
    classes = torch.randperm(10, generator=generator)[:ways]
    chosen = torch.stack([_draw(label, 2 * shots, generator, part) for label in classes])
    return Task(_batch(chosen[:, :shots]), _batch(chosen[:, shots:]))


def tasks(count: int, seed: int = 0, ways: int = 5, shots: int = 10, part: str = "all") -> Task:
    """The tasks of `count` seeds from `seed` on, stacked along a leading dimension."""
    return stack([task(seed + index, ways, shots, part) for index in range(count)])


def flatten(task: Task) -> Task:
    """The same task, or stack of tasks, with x of shape [..., 64] for a perceptron."""
    train, validation = task
    return Task(Batch(train.x.flatten(-3), train.y), Batch(validation.x.flatten(-3), validation.y))


def _draw(label: Tensor, count: int, generator: Generator, part: str) -> Tensor:
    """Indices of different images of one digit, shape [count]."""
    among = torch.arange(len(images().y))[PARTS[part]]
    members = among[images().y[among] == label]
    return members[torch.randperm(len(members), generator=generator)[:count]]


def _batch(chosen: Tensor) -> Batch:
    """The images of indices [ways, shots], labelled by their row."""
    ways, shots = chosen.shape
    return Batch(images().x[chosen.flatten()], torch.arange(ways).repeat_interleave(shots))
