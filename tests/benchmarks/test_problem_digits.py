"""The digits tasks."""

from __future__ import annotations

import pytest
import torch

from benchmarks.problems import classification
from benchmarks.problems.tasks import move


def rows(batch):
    return {tuple(row) for row in batch.x.flatten(1).tolist()}


def test_all_images():
    data = classification.images()
    assert data.x.shape == (1797, 1, 8, 8)
    assert data.x.dtype == torch.float64
    assert (data.x.min(), data.x.max()) == (0, 1)
    assert data.y.unique().tolist() == list(range(10))


@pytest.mark.parametrize("seed", range(5))
def test_a_task_is_balanced_and_its_batches_are_disjoint(seed):
    task = classification.task(seed, ways=4, shots=6)
    for batch in task:
        assert batch.x.shape == (24, 1, 8, 8)
        assert torch.bincount(batch.y).tolist() == [6] * 4
    assert len(rows(task.train) | rows(task.validation)) == 48


def test_labels_name_the_same_digit_in_both_batches():
    task = classification.task(11)
    everything = dict(
        zip(
            map(tuple, classification.images().x.flatten(1).tolist()),
            classification.images().y.tolist(),
            strict=True,
        )
    )
    names = [set(), set(), set(), set(), set()]
    for batch in task:
        for row, label in zip(batch.x.flatten(1).tolist(), batch.y.tolist(), strict=True):
            names[label].add(everything[tuple(row)])
    assert all(len(name) == 1 for name in names)
    assert len(set.union(*names)) == 5


def test_different_seeds_draw_different_classes_and_all_of_them():
    firsts = {
        classification.images()
        .y[(classification.images().x == classification.task(s, shots=1).train.x[0]).all((1, 2, 3))]
        .item()
        for s in range(60)
    }
    assert firsts == set(range(10))


def test_stacked_tasks_are_the_single_ones():
    stacked = classification.tasks(3, seed=5, ways=3, shots=2)
    assert stacked.train.x.shape == (3, 6, 1, 8, 8)
    assert stacked.validation.y.shape == (3, 6)
    torch.testing.assert_close(stacked.validation.x[2], classification.task(7, 3, 2).validation.x)


def test_flat_images_for_the_perceptron():
    assert classification.flatten(classification.task(0, 5, 2)).train.x.shape == (10, 64)
    assert classification.flatten(classification.tasks(3, shots=2)).validation.x.shape == (
        3,
        10,
        64,
    )


def test_labels_stay_integers():
    task = move(classification.task(0), torch.device("cpu"), torch.float32)
    assert task.train.x.dtype == torch.float32
    assert task.train.y.dtype == torch.int64
