"""Handwritten characters of Omniglot: as one classification problem, and for few-shot tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from benchmarks.problems.classification import Split
from benchmarks.problems.data_files import BrokenDataError, require
from benchmarks.problems.pictures import StoredPictures
from benchmarks.problems.tasks import Batch

FILE = "omniglot_28.npz"
ORIGIN = (
    "It holds the 1623 x 20 drawings of Omniglot (Lake, Salakhutdinov and Tenenbaum 2015,"
    " https://github.com/brendenlake/omniglot) as a NumPy array images (uint8, 1623 x 20 x 28 x 28,"
    " paper 255 and ink 0)."
)
CHARACTERS, DRAWERS, SIZE = 1623, 20, 28
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
    drawings = torch.from_numpy(_images(directory)[:characters].astype(np.float64))
    ink = functional.avg_pool2d(1 - drawings / 255, 2).flatten(-2)
    order = torch.randperm(DRAWERS, generator=Generator().manual_seed(seed))
    ends = (train, train + validation)
    parts = (order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :])
    return Split(*(_batch(ink[:, part]) for part in parts))


def pictures(directory: Path | None) -> StoredPictures:
    """Every character, each drawn by 20 people: bytes of 28 x 28 pixels, paper 255, ink 0.

    Args:
        directory: The folder of the data sets.

    Raises:
        MissingDataError: The file is not there.
        BrokenDataError: It holds something else.
    """
    return StoredPictures(torch.from_numpy(_images(directory))[:, :, None])


def _images(directory: Path | None) -> np.ndarray:
    path = require(directory, FILE, ORIGIN)
    with np.load(path, allow_pickle=False) as file:
        images = file["images"] if "images" in file.files else np.empty(0)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (DRAWERS, SIZE, SIZE):
        raise BrokenDataError(
            f"{path}: images is {images.dtype} of shape {images.shape}; expected uint8 of"
            f" (characters, {DRAWERS}, {SIZE}, {SIZE}). {ORIGIN}"
        )
    return images


def _batch(ink: Tensor) -> Batch:
    characters, drawings, _ = ink.shape
    return Batch(ink.flatten(0, 1), torch.arange(characters).repeat_interleave(drawings))
