"""The pictures of each data set, their classes and the tasks on them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Generator

from benchmarks.few_shot_images.protocols import MADE_UP, MINI_IMAGENET, Protocol
from benchmarks.few_shot_images.sizes import Setting
from benchmarks.problems import class_splits, mini_imagenet, omniglot
from benchmarks.problems.class_splits import ClassSplit
from benchmarks.problems.few_shot import Episodes, TaskShape
from benchmarks.problems.pictures import Pictures, StoredPictures

SPLIT_SEED, TRAIN_SEED, LOOK_SEED, TEST_SEED = 0, 1, 2, 3
"""The same tasks for every method."""


@cache
def load(data: str, folder: Path | None) -> tuple[Pictures, ClassSplit | None]:
    """Pictures, and their split where the data set has one of its own."""
    if data == MADE_UP:
        return made_up(), None
    if data == MINI_IMAGENET:
        return mini_imagenet.load(folder)
    return omniglot.pictures(folder), None


def made_up(classes: int = 14, per_class: int = 6) -> StoredPictures:
    """A random pattern for each class, and noise on it."""
    source = Generator().manual_seed(0)
    patterns = 200 * (torch.rand(classes, 1, 1, 28, 28, generator=source) < 0.3)
    noise = torch.randint(56, (classes, per_class, 1, 28, 28), generator=source)
    return StoredPictures((patterns + noise).to(torch.uint8))


def divide(pictures: Pictures, split: ClassSplit | None, protocol: Protocol) -> ClassSplit:
    """The classes of each part under a protocol."""
    if split is not None:
        return split
    assert protocol.classes is not None, "only data sets with a split of their own have none"
    return class_splits.shuffled(pictures.classes, *protocol.classes, SPLIT_SEED)


class Tasks:
    """The tasks of a setting.

    Args:
        setting: The setting.
        folder: The folder of the data sets.

    Attributes:
        split: The classes of each part.
        pixels: In a row of a picture.
    """

    def __init__(self, setting: Setting, folder: Path | None) -> None:
        self._setting = setting
        self._pictures, split = load(setting.data, folder)
        self.split = divide(self._pictures, split, setting.protocol)
        self.pixels = self._pictures.shape[-1]

    def training(self) -> Episodes:
        """Meta-batches for meta-training."""
        setting = self._setting
        shape = TaskShape(setting.ways, setting.shots, setting.queries)
        return self._episodes(self.split.train, shape, setting.protocol.tasks, TRAIN_SEED)

    def looks(self, tasks: int) -> Episodes:
        """Tasks for looks during training.

        On validation classes, or, where a protocol has none, on those of the test, by which
        nothing is chosen.
        """
        return self._held_out(self.split.validation or self.split.test, tasks, LOOK_SEED)

    def test(self, tasks: int) -> Episodes:
        """Tasks for the meta-test, `tasks` in each batch."""
        return self._held_out(self.split.test, tasks, TEST_SEED)

    def _held_out(self, classes: tuple[int, ...], tasks: int, seed: int) -> Episodes:
        """As many validation pictures as training pictures, as in the papers' tests."""
        shots = self._setting.shots
        return self._episodes(classes, TaskShape(self._setting.ways, shots, shots), tasks, seed)

    def _episodes(
        self, classes: tuple[int, ...], shape: TaskShape, tasks: int, seed: int
    ) -> Episodes:
        handling = self._setting.protocol.handling
        return Episodes(self._pictures, classes, shape, tasks, seed, handling)
