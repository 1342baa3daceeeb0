"""Pictures of Omniglot and mini-ImageNet, and how their classes are divided."""

from __future__ import annotations

import csv
import io
import zipfile
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.__main__ import default_data
from benchmarks.problems import picture_data
from benchmarks.problems.data_files import BrokenDataError, MissingDataError
from benchmarks.problems.picture_data import ClassSplit, EncodedPictures, StoredPictures

LISTS = {"train": ["cat", "dog", "eel"], "val": ["fox"], "test": ["gnu", "hen"]}
NAMES = ("hen", "gnu", "fox", "eel", "dog", "cat")
PER_CLASS = 3


def pixels(label, number, size=84):
    """The colours of a made-up picture: one for each class and number."""
    return np.full((size, size, 3), (20 * label, 50 * number, 7), np.uint8)


def encoded(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_lists(folder, lists=None):
    with zipfile.ZipFile(folder / picture_data.SPLITS, "w") as archive:
        for part, names in (lists or LISTS).items():
            text = io.StringIO()
            rows = csv.writer(text)
            rows.writerow(["filename", "label"])
            rows.writerows([f"{name}{k}.jpg", name] for name in names for k in range(PER_CLASS))
            archive.writestr(f"{part}.csv", text.getvalue())


def write_file(folder):
    files = [encoded(pixels(label, k)) for label in range(len(NAMES)) for k in range(PER_CLASS)]
    np.savez(
        folder / picture_data.MINI_IMAGENET_FILE,
        data=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *(len(file) for file in files)]),
        label=np.repeat(np.arange(len(NAMES)), PER_CLASS),
        wnid=np.array(NAMES),
    )


def write_pictures(folder, size=84):
    (folder / picture_data.FOLDER).mkdir()
    for label, name in enumerate(NAMES):
        for k in range(PER_CLASS):
            path = folder / picture_data.FOLDER / f"{name}{k}.jpg"
            path.write_bytes(encoded(pixels(label, k, size)))


def names_of(found, classes):
    """The classes by the colour of their first pictures, which tells them apart."""
    labels = torch.tensor(classes)
    reds = found.take(labels, torch.zeros_like(labels))[:, 0, 0, 0]
    return [NAMES[red // 20] for red in reds.tolist()]


@pytest.mark.parametrize("form", ["file", "folder", "folder of larger pictures"])
def test_mini_imagenet_by_its_split_file(tmp_path, form):
    write_lists(tmp_path)
    if form == "file":
        write_file(tmp_path)
    else:
        write_pictures(tmp_path, 84 if form == "folder" else 90)
    found, split = picture_data.mini_imagenet(tmp_path)
    assert (found.classes, found.per_class, found.shape) == (6, PER_CLASS, (3, 84, 84))
    for part, names in zip(astuple(split), LISTS.values(), strict=True):
        assert names_of(found, part) == names
    both = found.take(torch.tensor([[split.test[0]] * 2]), torch.tensor([[2, 1]]))
    assert both.shape == (1, 2, 3, 84, 84)
    assert both.dtype == torch.uint8
    expected = torch.from_numpy(pixels(NAMES.index("gnu"), 2)).permute(2, 0, 1)
    assert torch.equal(both[0, 0], expected)


def test_a_picture_is_decoded_once():
    read = []

    def file(row, column):
        read.append((row, column))
        return encoded(pixels(row, column))

    found = EncodedPictures(file, 2, 2, 84)
    rows, columns = torch.tensor([0, 1, 0, 0]), torch.tensor([1, 0, 1, 0])
    first, again = found.take(rows, columns), found.take(rows, columns)
    assert torch.equal(first, again)
    assert sorted(read) == [(0, 0), (0, 1), (1, 0)]


def test_what_is_missing_is_said_with_its_origin(tmp_path):
    with pytest.raises(MissingDataError, match=r"--data .*twitter-research"):
        picture_data.mini_imagenet(None)
    with pytest.raises(MissingDataError, match=r"splits\.zip is not in"):
        picture_data.mini_imagenet(tmp_path)
    write_lists(tmp_path)
    with pytest.raises(MissingDataError, match=r"image-net\.org"):
        picture_data.mini_imagenet(tmp_path)
    with pytest.raises(MissingDataError, match="brendenlake/omniglot"):
        picture_data.omniglot(tmp_path)


def test_files_that_hold_something_else(tmp_path):
    write_lists(tmp_path, {**LISTS, "test": ["ibex"]})
    write_file(tmp_path)
    with pytest.raises(BrokenDataError, match="'ibex'"):
        picture_data.mini_imagenet(tmp_path)
    np.savez(tmp_path / picture_data.MINI_IMAGENET_FILE, data=np.zeros(3))
    with pytest.raises(BrokenDataError, match="has no offsets, label, wnid"):
        picture_data.mini_imagenet(tmp_path)
    (tmp_path / picture_data.SPLITS).write_bytes(b"no archive")
    with pytest.raises(BrokenDataError, match="cannot be read"):
        picture_data.mini_imagenet(tmp_path)
    np.savez(tmp_path / picture_data.OMNIGLOT_FILE, images=np.zeros((3, 20, 28, 28)))
    with pytest.raises(BrokenDataError, match=r"float64 .* expected uint8"):
        picture_data.omniglot(tmp_path)
    with pytest.raises(BrokenDataError, match="cannot be decoded"):
        EncodedPictures(lambda *_: b"no picture", 1, 1, 84).take(
            torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        )


def test_a_folder_that_lacks_pictures(tmp_path):
    write_lists(tmp_path)
    write_pictures(tmp_path)
    (tmp_path / picture_data.FOLDER / "eel1.jpg").unlink()
    with pytest.raises(BrokenDataError, match=r"lacks 1 of .* eel1\.jpg"):
        picture_data.mini_imagenet(tmp_path)


def test_omniglot_by_class(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(5, 20, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / picture_data.OMNIGLOT_FILE, images=images)
    found = picture_data.omniglot(tmp_path)
    assert isinstance(found, StoredPictures)
    assert (found.classes, found.per_class, found.shape) == (5, 20, (1, 28, 28))
    taken = found.take(torch.tensor([4, 0]), torch.tensor([19, 3]))
    assert np.array_equal(taken[:, 0].numpy(), images[[4, 0], [19, 3]])


@given(
    st.integers(1, 30), st.integers(0, 30), st.integers(1, 30), st.integers(0, 9),
    st.integers(0, 2**40),
)  # fmt: skip
def test_shuffled_parts_share_no_class(train, validation, test, spare, seed):
    total = train + validation + test + spare
    split = picture_data.shuffled(total, train, validation, test, seed)
    parts = astuple(split)
    assert [len(part) for part in parts] == [train, validation, test]
    together = [label for part in parts for label in part]
    assert len(set(together)) == len(together)
    assert set(together) <= set(range(total))
    assert split == picture_data.shuffled(total, train, validation, test, seed)


def test_parts_that_share_a_class_cannot_be_made():
    with pytest.raises(BrokenDataError, match=r"classes \[1\] are in the split more than once"):
        ClassSplit((0, 1), (), (1, 2))
    with pytest.raises(BrokenDataError, match="more than once"):
        picture_data.by_lists(["a", "b"], {"train": ["a"], "val": [], "test": ["b", "a"]})
    with pytest.raises(BrokenDataError, match="for the meta-test"):
        ClassSplit((0, 1), (2,), ())
    with pytest.raises(BrokenDataError, match=r"1200 \+ 0 \+ 423 classes .* there are 1600"):
        picture_data.shuffled(1600, 1200, 0, 423, 0)


def real(file):
    folder = default_data()
    if folder is None or not (folder / file).is_file():
        pytest.skip(f"{file} is not in the data folder")
    return folder


def test_the_real_omniglot():
    found = picture_data.omniglot(real(picture_data.OMNIGLOT_FILE))
    assert (found.classes, found.per_class) == (picture_data.CHARACTERS, 20)
    for sizes in ((1200, 0, 423), (1100, 100, 423)):
        picture_data.shuffled(found.classes, *sizes, seed=0)
    whole = found.take(torch.arange(found.classes), torch.zeros(found.classes, dtype=torch.int64))
    assert (whole.float() / 255).mean() > 0.8  # paper is light


def test_the_real_mini_imagenet():
    folder = real(picture_data.MINI_IMAGENET_FILE)
    real(picture_data.SPLITS)
    found, split = picture_data.mini_imagenet(folder)
    assert (found.classes, found.per_class, found.shape) == (100, 600, (3, 84, 84))
    assert [len(part) for part in astuple(split)] == [64, 16, 20]
    with np.load(folder / picture_data.MINI_IMAGENET_FILE) as file:
        wnid, stored = file["wnid"].tolist(), file["class_split"].tolist()
    for code, part in enumerate(astuple(split)):
        assert sorted(part) == [label for label, own in enumerate(stored) if own == code]
    assert len(set(wnid)) == 100
    taken = found.take(torch.tensor([0, 99]), torch.tensor([0, 599]))
    assert all(picture.float().std() > 5 for picture in taken)
