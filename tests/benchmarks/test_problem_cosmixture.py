"""The CosMixture tasks."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.problems import functions, models
from benchmarks.problems.functions import COSMIXTURE
from benchmarks.problems.tasks import move

PROTOCOLS = ["code", "text"]


def unscaled(batch, protocol):
    scaled = COSMIXTURE.standardisation(protocol)
    return batch.x * scaled.x_std + scaled.x_mean, batch.y * scaled.y_std + scaled.y_mean


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_numbers_of_a_function_fill_their_ranges(protocol):
    ranges = functions.PROTOCOLS[protocol]
    generator = torch.Generator().manual_seed(0)
    drawn = [COSMIXTURE.draw(protocol, generator) for _ in range(2000)]
    for name in ("amplitude", "frequency", "phase"):
        low, high = getattr(ranges, name)
        values = [getattr(function, name) for function in drawn]
        width = high - low
        assert low <= min(values) < low + 0.01 * width
        assert high - 0.01 * width < max(values) <= high
        assert sum(values) / 2000 == pytest.approx((low + high) / 2, abs=0.02 * width)


def test_the_ranges_of_the_two_protocols():
    code, text = (functions.PROTOCOLS[name] for name in PROTOCOLS)
    assert (code.scale, text.scale) == (1.0, 0.1)
    assert code.frequency == pytest.approx((3 * math.pi, 6 * math.pi))
    assert text.frequency == pytest.approx((0.5 * math.pi, 2 * math.pi))
    assert (code.phase, text.phase) == ((0.5, 2.0), (3.0, 6.0))


def test_a_value_by_hand():
    function = functions.CosMixture(scale=0.1, amplitude=0.5, frequency=2.0, phase=3.0)
    x = torch.tensor([[0.25, -1.0]], dtype=torch.float64)
    expected = -0.05 * (math.cos(3.5) + math.cos(1.0)) - (0.0625 + 1.0)
    assert function(x).shape == (1, 1)
    assert function(x).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_points_are_uniform_and_training_and_validation_differ(protocol):
    tasks = COSMIXTURE.tasks(range(20), protocol)
    assert tasks.train.x.shape == (20, 100, 2)
    assert tasks.train.y.shape == (20, 100, 1)
    x = torch.cat([unscaled(batch, protocol)[0] for batch in tasks]).reshape(-1, 2)
    assert x.dtype == torch.float64
    assert -1 <= x.min() < -0.99
    assert 0.99 < x.max() <= 1
    assert len(torch.unique(x, dim=0)) == 20 * 200


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_targets_are_the_functions_values(protocol):
    task = COSMIXTURE.task(7, protocol)
    function = COSMIXTURE.draw(protocol, torch.Generator().manual_seed(7))
    for batch in task:
        x, y = unscaled(batch, protocol)
        torch.testing.assert_close(y, function(x), rtol=1e-12, atol=1e-12)


def test_the_standardisation_agrees_with_the_released_data():
    """Mean and standard deviation of y there: -0.678 and 0.740; standard deviation of x: .583."""
    scaled = COSMIXTURE.standardisation("code")
    assert scaled.y_mean.item() == pytest.approx(-0.678, abs=0.03)
    assert scaled.y_std.item() == pytest.approx(0.740, abs=0.05)
    torch.testing.assert_close(scaled.x_std, torch.full((2,), 0.583).double(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_many_tasks_together_are_standardised(protocol):
    tasks = COSMIXTURE.tasks(range(200), protocol)
    assert tasks.train.y.mean().abs() < 0.1
    assert tasks.train.y.std().item() == pytest.approx(1, abs=0.1)


def test_the_texts_tasks_are_nearly_one_bowl():
    def explained(protocol):
        tasks = COSMIXTURE.tasks(range(50), protocol)
        x, y = unscaled(tasks.train, protocol)
        residual = y + x.square().sum(-1, keepdim=True)
        return 1 - (residual.var() / y.var()).item()

    assert explained("text") > 0.9
    assert explained("code") < 0.7


def test_tasks_depend_on_the_seed_alone():
    first = COSMIXTURE.task(3, "code", shots=10)
    torch.manual_seed(99)
    again = COSMIXTURE.task(3, "code", shots=10)
    other = COSMIXTURE.task(4, "code", shots=10)
    assert torch.equal(first.train.x, again.train.x)
    assert torch.equal(first.validation.y, again.validation.y)
    assert not torch.equal(first.train.x, other.train.x)


def test_the_network_learns_from_the_initial_parameters():
    parameters = functions.MODEL.init(0)
    assert models.count(parameters) == 1185
    batch = COSMIXTURE.task(0, "code").train

    def loss(p):
        return models.half_mean_square(functions.MODEL.apply(p, batch.x), batch.y)

    before = loss(parameters)
    for _ in range(50):
        slope = torch.func.grad(loss)(parameters)
        parameters = {name: p - 0.1 * slope[name] for name, p in parameters.items()}
    assert loss(parameters) < 0.9 * before


def test_a_task_moves_to_another_type():
    task = move(COSMIXTURE.task(0, "text", shots=5), torch.device("cpu"), torch.float32)
    assert {batch.x.dtype for batch in task} == {batch.y.dtype for batch in task} == {torch.float32}
