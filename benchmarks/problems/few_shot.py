"""Few-shot tasks from pictures by class: a meta-batch is a function of its index."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Generator, Tensor

import odeopt
from benchmarks.problems.picture_data import Pictures
from benchmarks.problems.tasks import Batch
from odeopt.tools.seeds import generator

TURNS = 4
"""Rotations by multiples of 90 degrees."""


@dataclass(frozen=True)
class TaskShape:
    """What a task is made of."""

    ways: int  # classes
    shots: int  # training pictures of each
    queries: int  # others of each for validation


@dataclass(frozen=True)
class Handling:
    """What is done to the pictures."""

    # whether a class is turned by a random multiple of 90 degrees, the same for its training and
    # validation pictures, in each task anew
    rotated: bool = False
    inverted: bool = False  # whether x becomes 1 - x


class PixelBatch(NamedTuple):
    """The pictures of a meta-batch in main memory, as bytes."""

    pixels: Tensor  # [tasks, ways, shots + queries, channels, height, width]
    names: tuple[str, ...]  # what the tasks are called in reports of failures


class Episodes:
    """Meta-batches of tasks on some of the classes.

    `draw(k)` depends on k and the seed alone, so that a run that resumes has to store nothing.

    Raises:
        InputError: There are too few classes, or too few pictures of each.
    """

    def __init__(
        self, pictures: Pictures, classes: Sequence[int], shape: TaskShape, tasks: int, seed: int,
        handling: Handling,
    ) -> None:  # fmt: skip
        needed = shape.shots + shape.queries
        if shape.ways > len(classes) or needed > pictures.per_class:
            raise odeopt.InputError(
                f"a task of {shape.ways} classes and {needed} pictures of each cannot be drawn from"
                f" {len(classes)} classes of {pictures.per_class} pictures."
            )
        self.shape, self.handling = shape, handling
        self._pictures, self._classes = pictures, torch.tensor(list(classes))
        self.tasks, self._seed = tasks, seed

    def draw(self, index: int) -> PixelBatch:
        """The pictures of a meta-batch."""
        ways, number = self.shape.ways, self.shape.shots + self.shape.queries
        source = generator(self._seed, index)
        classes = self._classes[_choices((self.tasks,), len(self._classes), ways, source)]
        which = _choices((self.tasks, ways), self._pictures.per_class, number, source)
        pixels = self._pictures.take(classes[..., None].expand_as(which), which)
        if self.handling.rotated:
            pixels = rotate(pixels, torch.randint(TURNS, classes.shape, generator=source))
        return PixelBatch(pixels, tuple(f"classes {row}" for row in classes.tolist()))

    def finish(
        self, drawn: PixelBatch, device: torch.device, dtype: torch.dtype
    ) -> odeopt.TaskBatch:
        """The tasks on a device: x in [0, 1], labels 0 to ways - 1, sorted by class."""
        pixels = drawn.pixels.to(device, non_blocking=True).to(dtype) / 255
        if self.handling.inverted:
            pixels = 1 - pixels
        shots = self.shape.shots
        train, validation = pixels[:, :, :shots], pixels[:, :, shots:]
        return odeopt.TaskBatch(_labelled(train), _labelled(validation), drawn.names)


def rotate(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turn the pictures of each class by its multiple of 90 degrees, 0 to 3.

    They are square, [*classes, pictures, channels, size, size].
    """
    rotated = pixels.clone()
    for turn in range(1, TURNS):
        chosen = turns == turn
        rotated[chosen] = torch.rot90(pixels[chosen], turn, (-2, -1))
    return rotated


def _choices(lead: tuple[int, ...], among: int, count: int, source: Generator) -> Tensor:
    """Different random indices below `among`, shape [*lead, count]."""
    return torch.rand(*lead, among, generator=source, dtype=torch.float64).argsort(-1)[..., :count]


def _labelled(pixels: Tensor) -> Batch:
    """Pictures of each class as one batch per task."""
    tasks, ways, each = pixels.shape[:3]
    labels = torch.arange(ways, device=pixels.device).repeat_interleave(each)
    return Batch(pixels.flatten(1, 2), labels.expand(tasks, -1))


class Feed:
    """`feed(k)` is meta-batch k on a device; `waited` is the seconds spent in calls, in all.

    On CUDA a thread draws the next two meta-batches (or `ahead`) into pinned memory meanwhile,
    from which they are copied without blocking. On a CPU, whose cores are busy anyway, nothing is
    prepared ahead.
    """

    def __init__(
        self, episodes: Episodes, device: torch.device, dtype: torch.dtype, ahead: int | None = None
    ) -> None:
        self._episodes, self._device, self._dtype = episodes, device, dtype
        self._ahead = (2 if device.type == "cuda" else 0) if ahead is None else ahead
        self._pool = ThreadPoolExecutor(1) if self._ahead else None
        self._coming: dict[int, Future[PixelBatch]] = {}
        self.waited = 0.0

    def __call__(self, index: int) -> odeopt.TaskBatch:
        """Meta-batch `index`; preparing it ahead changes nothing in it."""
        begin = perf_counter()
        coming = self._coming.pop(index, None)
        drawn = self._draw(index) if coming is None else coming.result()
        if self._pool is not None:
            wanted = range(index + 1, index + 1 + self._ahead)
            self._coming = {
                k: self._coming.get(k) or self._pool.submit(self._draw, k) for k in wanted
            }
        batch = self._episodes.finish(drawn, self._device, self._dtype)
        self.waited += perf_counter() - begin
        return batch

    def _draw(self, index: int) -> PixelBatch:
        drawn = self._episodes.draw(index)
        if self._device.type != "cuda":
            return drawn
        return PixelBatch(drawn.pixels.pin_memory(), drawn.names)
