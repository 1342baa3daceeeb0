"""Classes for meta-training, validation and the meta-test, of which no two share any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator

from benchmarks.problems.data_files import BrokenDataError


@dataclass(frozen=True)
class ClassSplit:
    """Indices of classes.

    Attributes:
        train: For meta-training.
        validation: For choices made along the way; may be empty.
        test: For the meta-test.

    Raises:
        BrokenDataError: A class is in two parts, or twice in one, or a part that must not be
            empty is.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]

    def __post_init__(self) -> None:
        listed = (*self.train, *self.validation, *self.test)
        if len(set(listed)) < len(listed):
            twice = sorted({label for label in listed if listed.count(label) > 1})
            raise BrokenDataError(f"classes {twice} are in the split more than once.")
        if not self.train or not self.test:
            raise BrokenDataError("a split needs classes for meta-training and for the meta-test.")


def shuffled(classes: int, train: int, validation: int, test: int, seed: int) -> ClassSplit:
    """Consecutive parts of the classes in random order.

    Args:
        classes: How many there are; those that are left over are not used.
        train: How many for meta-training.
        validation: How many for validation.
        test: How many for the meta-test.
        seed: Fixes which.

    Raises:
        BrokenDataError: There are too few classes.
    """
    if train + validation + test > classes:
        raise BrokenDataError(
            f"{train} + {validation} + {test} classes are asked for, but there are {classes}."
        )
    order = torch.randperm(classes, generator=Generator().manual_seed(seed)).tolist()
    ends = (train, train + validation, train + validation + test)
    return ClassSplit(
        tuple(order[: ends[0]]), tuple(order[ends[0] : ends[1]]), tuple(order[ends[1] : ends[2]])
    )


def by_lists(names: Sequence[str], lists: Mapping[str, Iterable[str]]) -> ClassSplit:
    """The parts that lists of names give.

    Args:
        names: The name of each class.
        lists: The names in each of the parts "train", "val" and "test".

    Raises:
        BrokenDataError: A listed class is unknown.
    """
    index = {name: label for label, name in enumerate(names)}
    unknown = sorted({name for part in lists.values() for name in part if name not in index})
    if unknown:
        raise BrokenDataError(
            f"the split lists {len(unknown)} classes that the pictures do not have, e.g."
            f" {unknown[0]!r}."
        )
    found = {part: tuple(index[name] for name in members) for part, members in lists.items()}
    return ClassSplit(found["train"], found["val"], found["test"])
