"""The functions of the regression tasks, and the protocol of Figure 2."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.problems import functions, models
from benchmarks.problems.functions import (
    ALPINE,
    COSMIXTURE,
    FUNCTIONS,
    POOL,
    Alpine,
    CosMixture,
    Regression,
    Standardisation,
)
from benchmarks.problems.tasks import Batch, move, take

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


FAMILIES = ["cosmixture", "alpine"]


@pytest.fixture(scope="module")
def made():
    """All four settings with 50 shots."""
    return {(f, p): Regression(f, p, 50) for f in FAMILIES for p in PROTOCOLS}


def released(family):
    """The functions of the released code, by its own random numbers."""
    ranges = {"cosmixture": [(0.1, 1), (0.5, 2), (3, 6)], "alpine": [(-5, 5)]}[family]
    low, high = np.array(ranges).T
    drawn = np.random.RandomState(100).uniform(size=(200, len(low))) * (high - low) + low
    if family == "alpine":
        shifts = [math.pi + k * math.pi / 12 for (k,) in drawn]
        return [Alpine(torch.full((2,), s).double()) for s in shifts]
    return [CosMixture(1.0, c, w * math.pi, phase) for c, phase, w in drawn]


def released_points(radius):
    """Its points, 2000 random ones and the grid for each function, [200, 2961, 2]."""
    random = np.random.RandomState(200).uniform(-radius, radius, size=(200, 2000, 2))
    axis = torch.linspace(-radius, radius, 31, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).expand(200, 961, 2)
    return torch.cat([torch.tensor(random), grid], 1)


@pytest.mark.parametrize(
    ("family", "radius", "mean", "std", "constant"),
    [("cosmixture", 1, -0.678, 0.740, 0.911), ("alpine", 10, 6.39, 3.655, 1.00)],
)
def test_the_functions_give_the_numbers_of_the_released_data(family, radius, mean, std, constant):
    """The last number is the error of a constant over all points of the test functions."""
    x = released_points(radius)
    y = torch.stack([f(p) for f, p in zip(released(family), x, strict=True)])
    scaled = Standardisation.of(Batch(x.flatten(0, 1), y.flatten(0, 1)))
    assert scaled.y_mean.item() == pytest.approx(mean, abs=0.01)
    assert scaled.y_std.item() == pytest.approx(std, abs=0.006)
    errors = ((y[100:] - scaled.y_mean) / scaled.y_std).square().mean((1, 2)).sqrt()
    assert errors.mean().item() == pytest.approx(constant, abs=0.001)


@pytest.mark.parametrize(("family", "centre"), [("cosmixture", 0.98), ("alpine", 1.02)])
def test_the_constants_error_on_the_grid(made, family, centre):
    """Other draws of 100 CosMixture functions vary by 0.03; the released one has 0.929."""
    data = made[family, "code"]
    assert data.constant_rmse() == pytest.approx(centre, abs=0.03)
    y = data.held_out_grid().y
    assert data.constant_rmse() == pytest.approx(np.sqrt((y.numpy() ** 2).mean((1, 2))).mean())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_standardisation_for_all_points_of_all_functions(family, protocol):
    data = Regression(family, protocol, POOL)  # all points of every pool
    training = data.train_batch(range(FUNCTIONS))
    grid = data.held_out_grid()
    parts = [training.train, training.validation, data.held_out_support()]
    unseen = [take(data._validation, slice(FUNCTIONS, None)), take(data._test, slice(FUNCTIONS))]
    for column in ("x", "y"):
        values = torch.cat(
            [getattr(part, column).flatten(0, -2) for part in (*parts, grid, *unseen)]
        )
        nothing = torch.zeros(values.shape[1], dtype=torch.float64)
        torch.testing.assert_close(values.mean(0), nothing, rtol=0, atol=1e-9)
        torch.testing.assert_close(values.std(0, correction=0), nothing + 1, rtol=1e-9, atol=0)


def rows(x):
    return {tuple(point) for point in x.tolist()}


@pytest.mark.parametrize("family", FAMILIES)
def test_support_and_query_come_from_different_pools(family):
    data = Regression(family, "code", 100)
    training, validation = set(), set()
    for episode in range(3, data.episodes, FUNCTIONS):  # all ten of one function
        task = data.train_batch([episode])
        support, query = rows(task.train.x[0]), rows(task.validation.x[0])
        assert len(support) == len(query) == 100  # drawn without replacement
        training |= support
        validation |= query
    assert not training & validation
    assert 500 < len(training) <= POOL  # 651 expected; ten times the stated 100 are seen at most


def test_points_are_chosen_by_the_seeds_of_the_released_code(made):
    """2i for the training points of episode i, 2i + 1 for its validation points."""
    data = made["alpine", "code"]
    task = data.train_batch([307])
    for batch, pools, seed in (
        (task.train, data._train, 614),
        (task.validation, data._validation, 615),
    ):
        chosen = torch.randperm(POOL, generator=torch.Generator().manual_seed(seed))[:50]
        assert torch.equal(batch.x[0], pools.x[7, chosen])
        assert torch.equal(batch.y[0], pools.y[7, chosen])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_shapes_types_and_disjoint_test_functions(made, family, protocol):
    data = made[family, protocol]
    task, support, grid = data.train_batch([1, 2, 3]), data.held_out_support(), data.held_out_grid()
    points = 961 if protocol == "code" else 100
    shapes = [(batch.x.shape[:2], batch.y.shape) for batch in (*task, support, grid)]
    assert shapes == [
        *[((3, 50), (3, 50, 1))] * 2,
        ((100, 50), (100, 50, 1)),
        ((100, points), (100, points, 1)),
    ]
    assert {leaf.dtype for batch in (*task, support, grid) for leaf in batch} == {torch.float64}
    everything = data.train_batch(range(FUNCTIONS))
    seen = rows(everything.train.x.flatten(0, 1)) | rows(everything.validation.x.flatten(0, 1))
    assert not seen & rows(support.x.flatten(0, 1))


def test_the_grid_is_regular_fills_the_square_and_is_the_same_for_all(made):
    x = made["cosmixture", "code"].held_out_grid().x
    assert torch.equal(x[0], x[99])
    lines = x[0].reshape(31, 31, 2)
    step = 2 / 30 / 0.583  # of the square's side, in standard deviations
    assert (lines[1:, :, 0] - lines[:-1, :, 0]).flatten().tolist() == pytest.approx(
        [step] * 930, rel=0.005
    )
    assert (lines[:, 1:, 1] - lines[:, :-1, 1]).flatten().tolist() == pytest.approx(
        [step] * 930, rel=0.005
    )
    inside = made["cosmixture", "code"].held_out_support().x
    assert bool((inside.amax((0, 1)) <= lines[30, 30]).all())
    assert bool((inside.amin((0, 1)) >= lines[0, 0]).all())


def test_the_texts_test_points_are_random(made):
    assert len(rows(made["cosmixture", "text"].held_out_grid().x.flatten(0, 1))) == 10_000


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_data_do_not_depend_on_anything_else(made, protocol):
    torch.manual_seed(7)
    again = Regression("alpine", protocol, 50)
    first, second = (d.train_batch([5, 99]) for d in (made["alpine", protocol], again))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.y, other.y)
    assert torch.equal(made["alpine", protocol].held_out_support().x, again.held_out_support().x)


def test_more_shots_keep_the_points_of_fewer(made):
    """The order of a pool is fixed by the seed, so settings are compared on the same functions."""
    more = Regression("cosmixture", "code", 100).held_out_support().x
    assert torch.equal(more[:, :50], made["cosmixture", "code"].held_out_support().x)


def test_an_unknown_protocol_is_refused():
    with pytest.raises(KeyError, match="printed"):
        ALPINE.draw("printed", torch.Generator())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_alpines_own_standardisation(protocol):
    scaled = ALPINE.standardisation(protocol)
    assert scaled.y_mean.item() == pytest.approx(6.38, abs=0.1)
    assert scaled.y_std.item() == pytest.approx(3.65, abs=0.1)
    assert scaled.x_std.tolist() == pytest.approx([10 / math.sqrt(3)] * 2, rel=0.005)
