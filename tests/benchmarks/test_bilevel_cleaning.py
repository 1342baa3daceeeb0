"""The part cleaning of the benchmark bilevel."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import budget
from benchmarks.bilevel import cleaning
from benchmarks.bilevel.cleaning import SIZES, UNIFORM, Training
from benchmarks.harness import strict_json
from benchmarks.harness.registry import Preset, Settings
from benchmarks.harness.store import ResultStore
from benchmarks.problems import classification
from odeopt.testing import relative_error

SMALL = SIZES[Preset.SMOKE]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cleaning")
    args = ["bilevel", "--only", "cleaning", "--preset", "smoke", "--results", str(folder)]
    assert CliRunner().invoke(command.app, args, catch_exceptions=False).exit_code == 0
    return folder / "cleaning"


@pytest.fixture
def given():
    return cleaning.make(UNIFORM, SMALL, 0, None, CPU)


def test_the_report_of_a_smoke_run(smoke):
    text = (smoke / "report.md").read_text()
    for row in (*cleaning.REFERENCE_SETS, "weights learned", "small-loss selection, tuned"):
        assert f"| {row}" in text
    assert "has the higher AUC" in text
    assert "Gradients are not cut;\nafter a training that diverges" in text
    assert (smoke / "auc.png").read_bytes().startswith(b"\x89PNG")


def test_the_search_spends_no_more_than_the_gradient(smoke):
    cell = strict_json.loads((smoke / "results.json").read_bytes())["cells"]
    learned, searched = (cell["digits uniform 0.5 seed=0 contest"][k]
                         for k in ("learned", "searched"))  # fmt: skip
    assert 0 < searched["spent"] <= learned["spent"]
    replays = 20 - 20  # 20 kept states for 20 steps
    assert learned["spent"] == SMALL.updates * (SMALL.steps * (1 + budget.HVP) + replays)
    assert len(learned["aucs"]) == SMALL.updates


def test_the_gradient_is_that_of_the_unrolled_training(given):
    training = Training(given, 5, SMALL.batch, None)
    scores = torch.randn(len(given.train.y), generator=torch.Generator().manual_seed(0))
    outer_loss = classification.mean_loss(given.model)
    start, stream, grid = training.inputs(given.train, 0)
    result = training.opts["scores"].value_and_grad(outer_loss)(
        start, stream, grid, given.validation, scores
    )
    leaf = scores.clone().requires_grad_()
    params, buffers = start, {name: torch.zeros_like(value) for name, value in start.items()}
    params = {name: value.requires_grad_() for name, value in params.items()}
    for k in range(5):
        value = training.loss(params, stream(k), torch.sigmoid(leaf))
        grads = torch.autograd.grad(value, list(params.values()), create_graph=True)
        for name, gradient in zip(list(params), grads, strict=True):
            buffers[name] = cleaning.MOMENTUM * buffers[name] + gradient
            params[name] = params[name] - cleaning.LR * buffers[name]
    (expected,) = torch.autograd.grad(outer_loss(params, given.validation), [leaf])
    assert relative_error(result.grads.hparams, expected) < 1e-4  # float32


def test_no_weight_and_no_example_are_the_same(given):
    training = Training(given, 8, SMALL.batch, None)
    params = training.train(given.train, 3)
    ones = torch.ones(len(given.train.y))
    weighted = training.train(given.train, 3, ones)
    assert all(torch.allclose(params[name], weighted[name], atol=1e-6) for name in params)


def test_small_losses_find_wrong_labels(given):
    training = Training(given, SMALL.steps, SMALL.batch, None)
    trial = cleaning.Trial("validation", 20, 0.5)
    choice = cleaning.search(training, trial.cost(training), seed=0)
    assert choice.details["trials"] >= 1
    assert int(choice.weights.sum()) + int(choice.accused.sum()) == len(given.train.y)
    kept = [cleaning.draw(Random(seed), 20).kept for seed in range(30)]
    assert min(kept) >= 0.2
    assert max(kept) <= 0.95


def test_omniglot_is_left_out_where_it_is_missing(tmp_path):
    settings = Settings(Preset.PAPER, ResultStore(tmp_path), tmp_path, CPU)
    sizes = SIZES[Preset.PAPER]
    assert {case.data for case in cleaning.available(settings, sizes)} == {"digits"}
    (tmp_path / "omniglot_28.npz").touch()
    assert cleaning.available(settings, sizes) == sizes.cases
    assert len(cleaning.cells(settings, replace(sizes, seeds=2))) == 2 * 2 * len(sizes.cases)
