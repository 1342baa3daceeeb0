"""Handwritten characters of Omniglot as one classification problem."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from benchmarks.problems.classification import Split
from benchmarks.problems.data_files import require
from benchmarks.problems.tasks import Batch

FILE = "omniglot_28.npz"
ORIGIN = (
    "It holds the 1623 x 20 drawings of Omniglot (Lake, Salakhutdinov and Tenenbaum 2015,"
    " https://github.com/brendenlake/omniglot) as a NumPy array images (uint8, 1623 x 20 x 28 x 28,"
    " paper 255 and ink 0)."
)
DRAWERS = 20
PIXELS = 14 * 14


def split(directory: Path | None, characters: int, train: int, validation: int, seed: int) -> Split:
    """The first characters, each drawn by 20 people: some for training, the last for the test.

    Args:
        directory: The folder of the data sets.
        characters: How many classes.
        train: Drawings of each for training.
        validation: Drawings of each for validation; the others are for the test.
        seed: Fixes which drawings.

    Raises:
        MissingDataError: The file is not there.
    """
    with np.load(require(directory, FILE, ORIGIN), allow_pickle=False) as file:
        drawings = torch.from_numpy(file["images"][:characters].astype(np.float64))
    ink = functional.avg_pool2d(1 - drawings / 255, 2).flatten(-2)
    order = torch.randperm(DRAWERS, generator=Generator().manual_seed(seed))
    ends = (train, train + validation)
    parts = (order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :])
    return Split(*(_batch(ink[:, part]) for part in parts))


def _batch(ink: Tensor) -> Batch:
    characters, drawings, _ = ink.shape
    return Batch(ink.flatten(0, 1), torch.arange(characters).repeat_interleave(drawings))
