"""The benchmark hyperparameters, and ridge regression."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import odeopt
from benchmarks import __main__ as command
from benchmarks import budget
from benchmarks.bilevel import hyperparameters
from benchmarks.bilevel.hyperparameters import KNOTS, RULES, SIZES, Choice, Training
from benchmarks.harness import strict_json
from benchmarks.harness.registry import Preset
from benchmarks.problems import classification, ridge

SMALL = SIZES[Preset.SMOKE]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hyperparameters")
    args = ["bilevel", "--only", "hyperparameters", "--preset", "smoke", "--results", str(folder)]
    assert CliRunner().invoke(command.app, args, catch_exceptions=False).exit_code == 0
    return folder / "hyperparameters"


@pytest.fixture(params=sorted(RULES))
def training(request):
    split = classification.split_digits(40, 20, 0)
    return Training(split, request.param, 6, 10, None)


@pytest.mark.slow
def test_the_report_of_a_smoke_run(smoke):
    text = (smoke / "report.md").read_text()
    for row in ("gradient, a weight decay per entry", "random search, 3 numbers", "100 |"):
        assert f"| {row}" in text
    assert "The lowest of all is that of" in text
    assert "is not yet at the closed form" in text
    assert (smoke / "ridge.png").read_bytes().startswith(b"\x89PNG")


def test_the_searches_spend_no_more_than_the_gradient(smoke):
    cell = strict_json.loads((smoke / "results.json").read_bytes())["cells"]["digits sgd seed=0"]
    for name in ("entry", "tensor"):
        assert cell[name]["spent"] == SMALL.updates * SMALL.steps * (1 + budget.HVP)
    for name in ("few", "all"):
        assert cell["entry"]["spent"] - SMALL.steps < cell[name]["spent"] <= cell["entry"]["spent"]


@given(st.lists(st.floats(-5, 1), min_size=ridge.FEATURES, max_size=ridge.FEATURES))
def test_the_closed_form_is_that_of_finite_differences(values):
    split, logs = ridge.split(200, 100, 1), torch.tensor(values)
    w = ridge.solution(split.train, logs)
    slope = torch.func.grad(ridge.inner_loss)(w, split.train, logs)
    assert slope.abs().max() < 1e-12

    def outer(logs):
        return ridge.outer_loss(ridge.solution(split.train, logs), split.validation, logs).item()

    found = ridge.hypergradient(split.train, split.validation, logs)
    for j in range(ridge.FEATURES):
        step = torch.zeros(ridge.FEATURES)
        step[j] = 1e-5
        difference = (outer(logs + step) - outer(logs - step)) / 2e-5
        assert abs(difference - found[j].item()) < 1e-9


@pytest.mark.slow
def test_the_hypergradient_converges_to_the_closed_form():
    errors = [hyperparameters.ridge_agreement(steps)["outer"] for steps in (10, 100, 800)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


def test_the_gradient_is_that_of_finite_differences(training):
    choice = hyperparameters.middle_choice(training, per_entry=True)
    gradient = training.value_and_grad(choice, seed=0).gradient
    generator = torch.Generator().manual_seed(0)
    along = Choice(
        torch.randn(KNOTS, generator=generator),
        {
            name: torch.randn(leaf.shape, generator=generator)
            for name, leaf in choice.decays.items()
        },
    )
    expected = (gradient.knots * along.knots).sum()
    expected += sum((gradient.decays[name] * leaf).sum() for name, leaf in along.decays.items())

    def value(h):
        moved = {name: leaf + h * along.decays[name] for name, leaf in choice.decays.items()}
        return training.validate(Choice(choice.knots + h * along.knots, moved), seed=0)

    difference = (value(1e-4) - value(-1e-4)) / 2e-4
    assert difference == pytest.approx(expected.item(), rel=1e-5)


def test_the_schedule_goes_through_its_knots(training):
    training = Training(training.split, training.rule, 1 + 3 * (KNOTS - 1), 10, None)
    knots = torch.linspace(-3, 0, KNOTS)
    knots[3] = 0.5
    rates = training.rates(knots)
    assert torch.allclose(rates[::3].log(), knots)
    assert torch.allclose(rates[10].log(), knots[3] + (knots[4] - knots[3]) / 3)


def test_random_choices_are_in_the_ranges(training):
    low, high = RULES[training.rule].rates
    for draw, numbers in ((hyperparameters.draw_few, 1), (hyperparameters.draw_all, 4)):
        choice = draw(training, Random(0))
        assert low <= choice.knots.exp().min()
        assert choice.knots.exp().max() <= high
        assert len({leaf.item() for leaf in choice.decays.values()}) == numbers


def test_a_training_that_diverges_is_survived(training, monkeypatch):
    def fail(*_):
        raise odeopt.DivergenceError("step 3")

    monkeypatch.setattr(Training, "train", fail)
    searched = hyperparameters.by_search(training, 6, hyperparameters.draw_few, seed=0)
    assert searched.details["validation losses"] == [float("inf")]
    assert torch.equal(searched.choice.knots, hyperparameters.middle_choice(training, False).knots)
    monkeypatch.setattr(Training, "value_and_grad", fail)
    found = hyperparameters.by_gradient(training, 2, per_entry=False)
    assert found.details["validation losses"] == [float("inf")] * 2
    assert found.spent == 2 * training.steps
