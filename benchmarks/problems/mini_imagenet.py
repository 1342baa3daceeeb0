"""Mini-ImageNet: 100 classes of 600 colour pictures, and the split of Ravi and Larochelle.

Two forms are read: one file with all pictures (`FILE`), or a folder with the pictures under their
official names (`FOLDER`), which is taken where both are there.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.problems import class_splits
from benchmarks.problems.class_splits import ClassSplit
from benchmarks.problems.data_files import BrokenDataError, require
from benchmarks.problems.pictures import EncodedPictures

FILE, FOLDER, SPLITS = "mini_imagenet_84_webp.npz", "mini_imagenet", "mini_imagenet_splits.zip"
PARTS = ("train", "val", "test")
SIZE = 84
ORIGIN = (
    "Mini-ImageNet (Vinyals et al. 2016) is a part of ImageNet (https://www.image-net.org, whose"
    " terms apply: research and education only). Put the pictures, under the file names of the"
    f" split's lists, into a folder {FOLDER}, or make {FILE}: data (uint8) holds the encoded"
    " pictures one after the other, picture n from offsets[n] to offsets[n + 1], label[n] is its"
    " class and wnid the name of each class."
)
SPLITS_ORIGIN = (
    "It holds train.csv, val.csv and test.csv of Ravi and Larochelle 2017, from"
    " https://github.com/twitter-research/meta-learning-lstm, folder data/miniImagenet."
)


class MiniImageNet(NamedTuple):
    """The pictures and the classes of each part."""

    pictures: EncodedPictures
    split: ClassSplit


def load(directory: Path | None) -> MiniImageNet:
    """The pictures, decoded when they are drawn, and their split.

    Args:
        directory: The folder of the data sets.

    Raises:
        MissingDataError: A file is not there.
        BrokenDataError: A file holds something else.
    """
    lists = _lists(require(directory, SPLITS, SPLITS_ORIGIN))
    folder = None if directory is None else directory / FOLDER
    if folder is not None and folder.is_dir():
        return _from_folder(folder, lists)
    return _from_file(require(directory, FILE, ORIGIN), lists)


def _lists(path: Path) -> dict[str, dict[str, list[str]]]:
    """The file names of each class of each part."""
    found: dict[str, dict[str, list[str]]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for part in PARTS:
                members: dict[str, list[str]] = defaultdict(list)
                text = archive.read(f"{part}.csv").decode()
                for row in csv.DictReader(io.StringIO(text)):
                    members[row["label"]].append(row["filename"])
                found[part] = dict(members)
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise BrokenDataError(f"{path} cannot be read: {error}. {SPLITS_ORIGIN}") from error
    return found


def _from_folder(folder: Path, lists: dict[str, dict[str, list[str]]]) -> MiniImageNet:
    files = {label: names for members in lists.values() for label, names in members.items()}
    split = class_splits.by_lists(list(files), lists)
    rows = list(files.values())
    missing = [name for names in rows for name in names if not (folder / name).is_file()]
    if missing:
        raise BrokenDataError(
            f"{folder} lacks {len(missing)} of the listed pictures, e.g. {missing[0]}. {ORIGIN}"
        )

    def read(row: int, column: int) -> bytes:
        return (folder / rows[row][column]).read_bytes()

    return MiniImageNet(EncodedPictures(read, len(rows), _common_length(rows), SIZE), split)


def _from_file(path: Path, lists: dict[str, dict[str, list[str]]]) -> MiniImageNet:
    names = ("data", "offsets", "label", "wnid")
    with np.load(path, allow_pickle=False) as file:
        absent = [name for name in names if name not in file.files]
        if absent:
            raise BrokenDataError(f"{path} has no {', '.join(absent)}. {ORIGIN}")
        data, offsets, label, wnid = (file[name] for name in names)
    if len(offsets) != len(label) + 1 or offsets[-1] > len(data):
        raise BrokenDataError(f"{path}: offsets do not fit label and data. {ORIGIN}")
    rows = [np.flatnonzero(label == index).tolist() for index in range(len(wnid))]
    split = class_splits.by_lists(wnid.tolist(), lists)

    def read(row: int, column: int) -> bytes:
        start = rows[row][column]
        return data[offsets[start] : offsets[start + 1]].tobytes()

    return MiniImageNet(EncodedPictures(read, len(rows), _common_length(rows), SIZE), split)


def _common_length(rows: list[list[str]] | list[list[int]]) -> int:
    lengths = {len(row) for row in rows}
    if len(lengths) != 1:
        raise BrokenDataError(f"classes have different numbers of pictures: {sorted(lengths)}.")
    return lengths.pop()
