"""Pictures by class, the classes of each part, and the data sets Omniglot and mini-ImageNet.

Pictures are all in memory, or encoded and decoded when they are first drawn. Classes for
meta-training, validation and the meta-test share none. Mini-ImageNet has 100 classes of 600 colour
pictures and the split of Ravi and Larochelle; two forms are read: one file with all pictures
(`MINI_IMAGENET_FILE`), or a folder with the pictures under their official names (`FOLDER`), which
is taken where both are there.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from benchmarks.problems.classification import Split
from benchmarks.problems.data_files import BrokenDataError, require
from benchmarks.problems.tasks import Batch

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class ClassSplit:
    """Indices of classes.

    Raises:
        BrokenDataError: A class is in two parts, or twice in one, or a part that must not be
            empty is.
    """

    train: tuple[int, ...]  # for meta-training
    validation: tuple[int, ...]  # for choices made along the way; may be empty
    test: tuple[int, ...]  # for the meta-test

    def __post_init__(self) -> None:
        listed = (*self.train, *self.validation, *self.test)
        if len(set(listed)) < len(listed):
            twice = sorted({label for label in listed if listed.count(label) > 1})
            raise BrokenDataError(f"classes {twice} are in the split more than once.")
        if not self.train or not self.test:
            raise BrokenDataError("a split needs classes for meta-training and for the meta-test.")


def shuffled(classes: int, train: int, validation: int, test: int, seed: int) -> ClassSplit:
    """So many of the classes in random order for each part; those that are left over are not used.

    Raises:
        BrokenDataError: There are too few classes.
    """
    if train + validation + test > classes:
        raise BrokenDataError(
            f"{train} + {validation} + {test} classes are asked for, but there are {classes}."
        )
    order = torch.randperm(classes, generator=Generator().manual_seed(seed))
    parts = order[: train + validation + test].split([train, validation, test])
    return ClassSplit(*(tuple(part.tolist()) for part in parts))


def by_lists(names: Sequence[str], lists: Mapping[str, Iterable[str]]) -> ClassSplit:
    """The parts "train", "val" and "test" that lists of names give.

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
    parts = {part: tuple(index[name] for name in members) for part, members in lists.items()}
    return ClassSplit(parts["train"], parts["val"], parts["test"])


class Pictures(NamedTuple):
    """As many pictures of each class, [channels, height, width]."""

    classes: int  # how many classes
    per_class: int  # how many pictures of each
    shape: tuple[int, int, int]  # of a picture
    # `take(classes, which)` is some pictures, by indices of classes and, of the same shape, of
    # pictures within them: unsigned bytes of that shape and (channels, height, width)
    take: Callable[[Tensor, Tensor], Tensor]


def stored(pixels: Tensor) -> Pictures:
    """Pictures in memory: unsigned bytes, [classes, pictures of each, channels, height, width]."""
    count, per_class, channels, height, width = pixels.shape
    shape = (channels, height, width)
    return Pictures(count, per_class, shape, lambda classes, which: pixels[classes, which])


def encoded(rows: Sequence[Sequence[Entry]], read: Callable[[Entry], bytes], size: int) -> Pictures:
    """Colour pictures of any kind that Pillow reads; `read(entry)` is the content of a file.

    The entries of each class are one of the rows. Each is decoded once, when it is first drawn, and
    resized (Lanczos) to a square. Memory grows with the pictures that were drawn, to
    `classes * per_class * 3 * size^2` bytes at most. Two threads may share it: at worst both decode
    a picture, to the same pixels.

    Raises:
        BrokenDataError: Classes have different numbers of pictures.
    """
    lengths = {len(row) for row in rows}
    if len(lengths) != 1:
        raise BrokenDataError(f"classes have different numbers of pictures: {sorted(lengths)}.")

    @cache
    def pixels(row: int, column: int) -> np.ndarray:
        name = f"picture {column} of class {row}"
        return _decode(lambda: read(rows[row][column]), name, size)

    def take(classes: Tensor, which: Tensor) -> Tensor:
        places = zip(classes.flatten().tolist(), which.flatten().tolist(), strict=True)
        drawn = torch.from_numpy(np.stack([pixels(*place) for place in places]))
        return drawn.reshape(*classes.shape, 3, size, size)

    return Pictures(len(rows), lengths.pop(), (3, size, size), take)


def _decode(read: Callable[[], bytes], name: str, size: int) -> np.ndarray:
    """The pixels of a picture, [3, size, size], whose content is read."""
    try:
        from PIL import Image, UnidentifiedImageError  # noqa: PLC0415
    except ImportError as error:
        raise BrokenDataError(
            "these pictures are encoded: install Pillow, which the extra `bench` brings."
        ) from error
    try:
        image = Image.open(io.BytesIO(read())).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise BrokenDataError(f"{name} cannot be decoded.") from error
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


OMNIGLOT_FILE = "omniglot_28.npz"
OMNIGLOT_ORIGIN = (
    "It holds the 1623 x 20 drawings of Omniglot (Lake, Salakhutdinov and Tenenbaum 2015,"
    " https://github.com/brendenlake/omniglot) as a NumPy array images (uint8, 1623 x 20 x 28 x 28,"
    " paper 255 and ink 0)."
)
CHARACTERS, DRAWERS, OMNIGLOT_SIZE = 1623, 20, 28
OMNIGLOT_PIXELS = 14 * 14


def omniglot_split(
    directory: Path | None, characters: int, train: int, validation: int, seed: int
) -> Split:
    """The first characters, each drawn by 20 people: some for training, the last for the test.

    Raises:
        MissingDataError: The file is not there.
    """
    drawings = torch.from_numpy(_omniglot_images(directory)[:characters].astype(np.float64))
    ink = functional.avg_pool2d(1 - drawings / 255, 2).flatten(-2)
    order = torch.randperm(DRAWERS, generator=Generator().manual_seed(seed))
    parts = [ink[:, part] for part in order.tensor_split((train, train + validation))]
    return Split(*(
        Batch(part.flatten(0, 1), torch.arange(len(part)).repeat_interleave(part.shape[1]))
        for part in parts
    ))  # fmt: skip


def omniglot(directory: Path | None) -> Pictures:
    """Every character, each drawn by 20 people: bytes of 28 x 28 pixels, paper 255, ink 0.

    Raises:
        MissingDataError: The file is not there.
        BrokenDataError: It holds something else.
    """
    return stored(torch.from_numpy(_omniglot_images(directory))[:, :, None])


def _omniglot_images(directory: Path | None) -> np.ndarray:
    path = require(directory, OMNIGLOT_FILE, OMNIGLOT_ORIGIN)
    with np.load(path, allow_pickle=False) as file:
        images = file["images"] if "images" in file.files else np.empty(0)
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[1:] != (DRAWERS, OMNIGLOT_SIZE, OMNIGLOT_SIZE)
    ):
        raise BrokenDataError(
            f"{path}: images is {images.dtype} of shape {images.shape}; expected uint8 of"
            f" (characters, {DRAWERS}, {OMNIGLOT_SIZE}, {OMNIGLOT_SIZE}). {OMNIGLOT_ORIGIN}"
        )
    return images


MINI_IMAGENET_FILE = "mini_imagenet_84_webp.npz"
FOLDER, SPLITS = "mini_imagenet", "mini_imagenet_splits.zip"
PARTS = ("train", "val", "test")
MINI_IMAGENET_SIZE = 84
MINI_IMAGENET_ORIGIN = (
    "Mini-ImageNet (Vinyals et al. 2016) is a part of ImageNet (https://www.image-net.org, whose"
    " terms apply: research and education only). Put the pictures, under the file names of the"
    f" split's lists, into a folder {FOLDER}, or make {MINI_IMAGENET_FILE}: data (uint8) holds the"
    " encoded pictures one after the other, picture n from offsets[n] to offsets[n + 1], label[n]"
    " is its class and wnid the name of each class."
)
SPLITS_ORIGIN = (
    "It holds train.csv, val.csv and test.csv of Ravi and Larochelle 2017, from"
    " https://github.com/twitter-research/meta-learning-lstm, folder data/miniImagenet."
)


def mini_imagenet(directory: Path | None) -> tuple[Pictures, ClassSplit]:
    """The pictures, decoded when they are drawn, and their split.

    Raises:
        MissingDataError: A file is not there.
        BrokenDataError: A file holds something else.
    """
    lists = _lists(require(directory, SPLITS, SPLITS_ORIGIN))
    folder = None if directory is None else directory / FOLDER
    if folder is not None and folder.is_dir():
        return _from_folder(folder, lists)
    return _from_file(require(directory, MINI_IMAGENET_FILE, MINI_IMAGENET_ORIGIN), lists)


Lists = dict[str, dict[str, list[str]]]
"""The file names of each class of each part."""


def _lists(path: Path) -> Lists:
    files: Lists = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for part in PARTS:
                members: dict[str, list[str]] = defaultdict(list)
                text = archive.read(f"{part}.csv").decode()
                for row in csv.DictReader(io.StringIO(text)):
                    members[row["label"]].append(row["filename"])
                files[part] = dict(members)
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise BrokenDataError(f"{path} cannot be read: {error}. {SPLITS_ORIGIN}") from error
    return files


def _from_folder(folder: Path, lists: Lists) -> tuple[Pictures, ClassSplit]:
    files = {label: names for members in lists.values() for label, names in members.items()}
    split = by_lists(list(files), lists)
    rows = list(files.values())
    missing = [name for names in rows for name in names if not (folder / name).is_file()]
    if missing:
        raise BrokenDataError(
            f"{folder} lacks {len(missing)} of the listed pictures, e.g. {missing[0]}."
            f" {MINI_IMAGENET_ORIGIN}"
        )
    return encoded(rows, lambda name: (folder / name).read_bytes(), MINI_IMAGENET_SIZE), split


def _from_file(path: Path, lists: Lists) -> tuple[Pictures, ClassSplit]:
    names = ("data", "offsets", "label", "wnid")
    with np.load(path, allow_pickle=False) as file:
        absent = [name for name in names if name not in file.files]
        if absent:
            raise BrokenDataError(f"{path} has no {', '.join(absent)}. {MINI_IMAGENET_ORIGIN}")
        data, offsets, label, wnid = (file[name] for name in names)
    if len(offsets) != len(label) + 1 or offsets[-1] > len(data):
        raise BrokenDataError(f"{path}: offsets do not fit label and data. {MINI_IMAGENET_ORIGIN}")
    rows: list[list[int]] = [np.flatnonzero(label == k).tolist() for k in range(len(wnid))]
    split = by_lists(wnid.tolist(), lists)

    def read(picture: int) -> bytes:
        return data[offsets[picture] : offsets[picture + 1]].tobytes()

    return encoded(rows, read, MINI_IMAGENET_SIZE), split
