"""The part distillation of the benchmark bilevel."""

from __future__ import annotations

from math import log

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import budget
from benchmarks.bilevel import distillation
from benchmarks.bilevel.distillation import SIZES, Images, Training
from benchmarks.harness import strict_json
from benchmarks.harness.registry import Preset
from benchmarks.problems.classification import split_digits

SMALL = SIZES[Preset.SMOKE]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distillation")
    args = ["bilevel", "--only", "distillation", "--preset", "smoke", "--results", str(folder)]
    assert CliRunner().invoke(command.app, args, catch_exceptions=False).exit_code == 0
    return folder / "distillation"


@pytest.fixture
def training():
    return Training(split_digits(60, 0, 0), 6, None)


@pytest.mark.slow
def test_the_report_of_a_smoke_run(smoke):
    text = (smoke / "report.md").read_text()
    for row in ("random real images", "the best of random", "the mean image", "synthetic images"):
        assert f"| {row}" in text
    assert "than the best of the others" in text
    for name in ("losses.png", "images.png"):
        assert (smoke / name).read_bytes().startswith(b"\x89PNG")


def test_the_search_spends_no_more_than_the_gradient(smoke):
    cells = strict_json.loads((smoke / "results.json").read_bytes())["cells"]
    distilled, searched = (cells["seed=0 contest"][k] for k in ("distilled", "searched"))
    outer = SMALL.real // 10
    assert distilled["spent"] == SMALL.updates * (SMALL.steps * (1 + budget.HVP) + outer)
    assert 0 < searched["spent"] <= distilled["spent"]


def test_the_gradient_is_that_of_finite_differences(training):
    images = distillation.random_images(training.split.train, log(0.3), seed=1)
    step = training.value_and_grad(images, seed=0)
    generator = torch.Generator().manual_seed(0)
    along = Images(*(torch.randn(leaf.shape, generator=generator) for leaf in images))
    expected = sum((g * a).sum() for g, a in zip(step.gradient, along, strict=True))

    def value(h):
        moved = Images(*(leaf + h * a for leaf, a in zip(images, along, strict=True)))
        return training.value(moved, seed=0)

    assert step.value == pytest.approx(value(0.0), rel=1e-12)
    assert (value(1e-5) - value(-1e-5)) / 2e-5 == pytest.approx(expected.item(), rel=1e-6)


def test_real_images_have_their_labels(training):
    real = training.split.train
    drawn = distillation.random_images(real, 0.0, seed=3)
    for c in range(10):
        assert (real.x[real.y == c] == drawn.x[c]).all(1).any()
        assert torch.allclose(distillation.mean_images(real, 0.0).x[c], real.x[real.y == c].mean(0))
    assert drawn.labels.argmax(-1).tolist() == list(range(10))
    assert drawn.labels.softmax(-1).max().item() == pytest.approx(0.94, abs=0.01)


def test_a_tuned_rate_is_the_best_of_the_grid(training):
    images = distillation.mean_images(training.split.train, 0.0)
    found = distillation.tune(training, images)
    assert found.details["loss"] == pytest.approx(training.value(found.choice, 0))
    for rate in (0.01, 0.1):
        own = images._replace(log_lr=torch.tensor(log(rate)))
        assert found.details["loss"] <= training.value(own, 0) + 1e-9
