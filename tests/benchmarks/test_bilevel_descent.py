"""Descent along gradients of trainings that may diverge."""

from __future__ import annotations

import pytest
import torch

import odeopt
from benchmarks.bilevel import descent
from benchmarks.bilevel.descent import Evaluation


def bowl(leaves, update):
    del update
    (x,) = leaves
    return Evaluation((x * x).sum().item(), [2 * x], 7)


def test_it_goes_down_and_returns_the_best_it_saw():
    found = descent.descend([torch.tensor([0.5, -0.4])], bowl, 20, 0.1, wasted=3)
    assert found.spent == 20 * 7
    assert min(found.values) < 0.05 * found.values[0]
    assert bowl(found.best, 0).value == pytest.approx(min(found.values), rel=1e-12)


def test_after_a_divergence_it_goes_on_from_the_best_in_half_steps():
    seen = []

    def evaluate(leaves, update):
        seen.append(leaves[0].item())
        if update == 2:
            raise odeopt.DivergenceError("here")
        return Evaluation(float(update), [torch.ones(())], 7)

    found = descent.descend([torch.tensor(1.0)], evaluate, 5, 0.1, wasted=3)
    assert found.values == [0.0, 1.0, float("inf"), 3.0, 4.0]
    assert found.spent == 4 * 7 + 3
    assert seen == pytest.approx([1.0, 0.9, 0.8, 1.0, 0.95], rel=1e-5)  # Adam's steps of a sign
    assert found.best[0].item() == 1.0
    # where each update has ended
    assert [leaf.item() for (leaf,) in found.path] == pytest.approx([0.9, 0.8, 1.0, 0.95, 0.9])


@pytest.mark.parametrize("diverging", [0, 2, 4])
@pytest.mark.parametrize("only_its_gradient", [False, True])
def test_every_update_has_one_value_and_one_place_on_the_path(diverging, only_its_gradient):
    def evaluate(leaves, update):
        if update == diverging and not only_its_gradient:
            raise odeopt.DivergenceError("here")
        slope = float("nan") if update == diverging else 1.0
        return Evaluation(leaves[0].item(), [torch.tensor(slope)], 1)

    found = descent.descend([torch.tensor(1.0)], evaluate, 5, 0.1, wasted=1)
    assert [value == float("inf") for value in found.values] == [k == diverging for k in range(5)]
    assert len(found.path) == 5
    before = min(found.values[:diverging], default=1.0)  # a value is where it was seen
    assert found.path[diverging][0].item() == pytest.approx(before)
    ends = [leaf.item() for (leaf,) in found.path]
    for end, value in zip(ends, found.values[1:], strict=False):
        assert value in (pytest.approx(end), float("inf"))


def test_nothing_is_moved_without_updates():
    found = descent.descend([torch.tensor(1.0)], bowl, 0, 0.1, wasted=1)
    assert (found.values, found.path, found.best[0].item()) == ([], [], 1.0)


def test_a_huge_gradient_does_not_stop_the_next_steps():
    def evaluate(leaves, update):
        huge = torch.full((), 1e30 if update == 0 else 1.0)
        return Evaluation(leaves[0].item(), [huge], 1)

    found = descent.descend([torch.tensor(1.0)], evaluate, 6, 0.1, wasted=1)
    assert found.values == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], rel=1e-4)
