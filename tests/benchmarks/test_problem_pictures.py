"""Pictures by class, and the few-shot tasks on them."""

from __future__ import annotations

import csv
import io
import threading
import zipfile
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import odeopt
from benchmarks.__main__ import default_data
from benchmarks.problems import few_shot, picture_data
from benchmarks.problems.data_files import BrokenDataError, MissingDataError
from benchmarks.problems.few_shot import Episodes, Feed, Handling, TaskShape
from benchmarks.problems.picture_data import ClassSplit, encoded, stored

LISTS = {"train": ["cat", "dog", "eel"], "val": ["fox"], "test": ["gnu", "hen"]}
NAMES = ("hen", "gnu", "fox", "eel", "dog", "cat")
PER_CLASS = 3


def pixels(label, number, size=84):
    """The colours of a made-up picture: one for each class and number."""
    return np.full((size, size, 3), (20 * label, 50 * number, 7), np.uint8)


def as_png(array):
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
    files = [as_png(pixels(label, k)) for label in range(len(NAMES)) for k in range(PER_CLASS)]
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
            path.write_bytes(as_png(pixels(label, k, size)))


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

    def file(place):
        read.append(place)
        return as_png(pixels(*place))

    found = encoded([[(0, 0), (0, 1)], [(1, 0), (1, 1)]], file, 84)
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
    nothing = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(BrokenDataError, match="cannot be decoded"):
        encoded([[""]], lambda _: b"no picture", 84).take(nothing, nothing)


def test_a_file_that_can_no_longer_be_read(tmp_path):
    nothing = torch.zeros(1, dtype=torch.int64)
    pictures = encoded([[tmp_path / "gone.jpg"]], Path.read_bytes, 84)
    with pytest.raises(BrokenDataError, match="picture 0 of class 0 cannot be decoded"):
        pictures.take(nothing, nothing)


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


CLASSES, EACH = 12, 7
SHAPE = TaskShape(ways=4, shots=2, queries=3)
CPU = torch.device("cpu")


def pictures():
    """Each picture names its class (the first pixel) and its number (the second)."""
    found = torch.zeros(CLASSES, EACH, 1, 4, 4, dtype=torch.uint8)
    found[:, :, 0, 0, 0] = torch.arange(CLASSES, dtype=torch.uint8)[:, None]
    found[:, :, 0, 0, 1] = torch.arange(EACH, dtype=torch.uint8)
    return stored(found)


def episodes(handling=None, classes=range(3, 11), shape=SHAPE, seed=0, tasks=5):
    return Episodes(pictures(), list(classes), shape, tasks, seed, handling or Handling())


def test_a_task_has_different_classes_and_shares_no_picture():
    made = episodes()
    for index in range(20):
        drawn = made.draw(index)
        assert drawn.pixels.shape == (5, 4, 5, 1, 4, 4)
        labels, numbers = drawn.pixels[..., 0, 0, 0], drawn.pixels[..., 0, 0, 1]
        for task in range(5):
            own = [set(row.tolist()) for row in labels[task]]
            assert all(len(row) == 1 for row in own)
            assert len(set.union(*own)) == SHAPE.ways
            assert set.union(*own) <= set(range(3, 11))
            assert all(len(set(row.tolist())) == 5 for row in numbers[task])
            assert drawn.names[task] == f"classes {labels[task, :, 0].tolist()}"


def test_every_class_and_picture_comes_up_as_often():
    drawn = [episodes().draw(index).pixels for index in range(200)]
    labels = torch.stack([pixels[:, :, 0, 0, 0, 0] for pixels in drawn]).flatten().tolist()
    numbers = torch.stack([pixels[..., 0, 0, 1] for pixels in drawn]).flatten().tolist()
    for counts, among in ((np.bincount(labels)[3:11], 8), (np.bincount(numbers), EACH)):
        assert len(counts) == among
        assert np.all(np.abs(counts / counts.mean() - 1) < 0.15)


def test_a_meta_batch_is_a_function_of_its_index_and_the_seed():
    first, again = episodes().draw(7), episodes().draw(7)
    assert torch.equal(first.pixels, again.pixels)
    assert first.names == again.names
    torch.manual_seed(123)  # the generator of torch itself plays no part
    assert torch.equal(episodes().draw(7).pixels, first.pixels)
    assert not torch.equal(episodes().draw(8).pixels, first.pixels)
    assert not torch.equal(episodes(seed=1).draw(7).pixels, first.pixels)


def test_a_batch_on_its_device(device):
    made = episodes()
    batch = made.finish(made.draw(0), device, torch.float32)
    train, validation = batch.train, batch.validation
    assert train.x.shape == (5, 8, 1, 4, 4)
    assert validation.x.shape == (5, 12, 1, 4, 4)
    assert train.y.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 5
    assert validation.y[0].tolist() == [k for k in range(4) for _ in range(3)]
    whole = made.draw(0).pixels.float() / 255
    assert torch.equal(train.x.cpu(), whole[:, :, :2].flatten(1, 2))
    assert torch.equal(validation.x.cpu(), whole[:, :, 2:].flatten(1, 2))
    inverted = episodes(Handling(inverted=True))
    x = inverted.finish(inverted.draw(0), device, torch.float32).train.x
    assert torch.equal(x.cpu(), 1 - train.x.cpu())


def test_a_class_is_turned_as_a_whole():
    pixels = torch.randint(256, (3, 4, 5, 1, 4, 4), dtype=torch.uint8)
    turns = torch.arange(12).reshape(3, 4) % 4
    turned = few_shot.rotate(pixels, turns)
    for task in range(3):
        for way in range(4):
            expected = np.rot90(pixels[task, way].numpy(), int(turns[task, way]), (-2, -1))
            assert np.array_equal(turned[task, way].numpy(), expected)


def test_training_and_validation_pictures_share_their_turn():
    corners = {0: (0, 0), 1: (3, 0), 2: (3, 3), 3: (0, 3)}
    bright = torch.zeros(CLASSES, EACH, 1, 4, 4, dtype=torch.uint8)
    bright[..., 0, 0] = 255
    made = Episodes(stored(bright), range(CLASSES), SHAPE, 50, 0, Handling(rotated=True))
    pixels = made.draw(0).pixels[:, :, :, 0]
    seen = torch.zeros(4)
    for turn, (row, column) in corners.items():
        there = pixels[..., row, column] == 255
        assert torch.equal(there.all(-1), there.any(-1))  # all pictures of a class or none
        seen[turn] = there[..., 0].sum()
    assert seen.sum() == 50 * SHAPE.ways
    assert seen.min() > 25


def test_too_few_classes_or_pictures():
    with pytest.raises(odeopt.InputError, match=r"4 classes and 5 pictures of each .* 3 classes"):
        episodes(classes=range(3))
    with pytest.raises(odeopt.InputError, match=r"8 pictures of each cannot .* of 7 pictures"):
        episodes(shape=replace(SHAPE, queries=6))


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_what_is_prepared_ahead_is_the_same(device, ahead):
    made, direct = episodes(), Feed(episodes(), CPU, torch.float32, ahead=0)
    drawn = []
    ready = threading.Event()

    def draw(index, original=made.draw):
        drawn.append((index, threading.current_thread() is threading.main_thread()))
        if index == ahead:
            ready.set()
        return original(index)

    made.draw = draw
    feed = Feed(made, device, torch.float32, ahead=ahead)
    feed(0)
    assert ready.wait(10)
    assert drawn == [(0, True), *((k, False) for k in range(1, ahead + 1))]
    for index in (1, 2, 3, 9, 10, 4):  # also where an index was not expected
        found, expected = feed(index), direct(index)
        assert torch.equal(found.train.x.cpu(), expected.train.x)
        assert torch.equal(found.validation.x.cpu(), expected.validation.x)
        assert found.names == expected.names
    assert feed.waited > 0
