"""Few-shot tasks: what they are made of, and that they are functions of their index."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

import odeopt
from benchmarks.problems import few_shot
from benchmarks.problems.few_shot import Episodes, Feed, Handling, TaskShape
from benchmarks.problems.picture_data import StoredPictures

CLASSES, PER_CLASS = 12, 7
SHAPE = TaskShape(ways=4, shots=2, queries=3)
CPU = torch.device("cpu")


def pictures():
    """Each picture names its class (the first pixel) and its number (the second)."""
    found = torch.zeros(CLASSES, PER_CLASS, 1, 4, 4, dtype=torch.uint8)
    found[:, :, 0, 0, 0] = torch.arange(CLASSES, dtype=torch.uint8)[:, None]
    found[:, :, 0, 0, 1] = torch.arange(PER_CLASS, dtype=torch.uint8)
    return StoredPictures(found)


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
    for counts, among in ((np.bincount(labels)[3:11], 8), (np.bincount(numbers), PER_CLASS)):
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
    bright = torch.zeros(CLASSES, PER_CLASS, 1, 4, 4, dtype=torch.uint8)
    bright[..., 0, 0] = 255
    made = Episodes(StoredPictures(bright), range(CLASSES), SHAPE, 50, 0, Handling(rotated=True))
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
