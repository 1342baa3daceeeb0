"""The few-shot benchmark from end to end: runs, reports, and going on where one was stopped."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import odeopt
from benchmarks import __main__ as command
from benchmarks import budget, meta_training, methods
from benchmarks.few_shot_images import cells, report, sizes
from benchmarks.few_shot_images.sizes import (
    BUDGET,
    MADE_UP,
    MINI_IMAGENET,
    OMNIGLOT,
    PAPERS,
    SIZES,
    Contender,
    Length,
    Setting,
)
from benchmarks.harness import strict_json
from benchmarks.harness.registry import Preset, Settings
from benchmarks.harness.store import ResultStore
from benchmarks.problems import published
from benchmarks.problems.few_shot import Feed
from odeopt.outer.run_folder import CHECKPOINT, Checkpoint


def run(*args):
    return CliRunner().invoke(command.app, list(args), catch_exceptions=False)


def small(method="maml", evaluations=90.0, **changes):
    """One contender on made-up pictures, a few seconds."""
    setting = Setting(
        MADE_UP, BUDGET[MADE_UP], 5, 1, (Contender(method),), Length(100, evaluations), looks=2
    )
    few = sizes.Sizes((replace(setting, **changes),), 4, None, None, None)
    return few


def compute(folder, few):
    """The cell of the only contender."""
    settings = Settings(Preset.SMOKE, ResultStore(folder), None, torch.device("cpu"))
    return cells.cells(settings, few)[-1].compute()


def comparable(cell):
    """What does not depend on the clock."""
    training = {k: v for k, v in cell["training"].items() if "seconds" not in k}
    return {**cell, "training": training}


@pytest.mark.slow
def test_the_smoke_preset_writes_a_whole_report_without_data(tmp_path):
    (tmp_path / "empty").mkdir()
    args = ("few-shot-images", "--preset", "smoke", "--results", str(tmp_path))
    args = (*args, "--data", str(tmp_path / "empty"))
    partial = run(*args, "--only", "untrained")
    assert "1 of 5 cells are stored" in partial.stdout
    assert "not complete: 4 of 5 cells" in (tmp_path / "report.md").read_text()
    assert run(*args).exit_code == 0
    text = (tmp_path / "report.md").read_text()
    assert "the pictures are made up" in text
    assert "not complete" not in text
    for label in ("not meta-trained", "A-MAML", "MAML", "COMLN", "softplus"):
        assert f"| {label} |" in text
    plots = list(tmp_path.glob("*.png"))
    assert len(plots) == 2
    assert all(f"({plot.name})" in text for plot in plots)
    found = strict_json.loads((tmp_path / "results.json").read_text())["cells"]
    trained = [cell for cell in found.values() if "training" in cell]
    assert len(trained) == 3
    for cell in trained:
        training = cell["training"]
        assert (training["failed_tasks"], training["stopped"]) == (0, "")
        assert training["spent"] >= 25 > training["looks"][0]["spent"] or training["updates"] == 1
        assert len(cell["accuracy"]) == 8
        assert training["sampling_seconds"] < 0.2 * training["seconds_here"]


def test_another_preset_asks_for_its_data(tmp_path):
    args = ("few-shot-images", "--preset", "quick", "--results", str(tmp_path))
    result = run(*args, "--data", str(tmp_path), "--only", "untrained")
    assert result.exit_code == 1
    assert "omniglot_28.npz is not in the data folder" in result.stderr


def test_a_preset_that_a_benchmark_does_not_have(tmp_path):
    result = run("regression", "--preset", "budget", "--results", str(tmp_path))
    assert result.exit_code == 2
    assert "regression has no preset 'budget'; it has smoke, quick, paper" in result.stderr


@pytest.mark.parametrize("method", ["maml", "meta-sgd"])
def test_a_run_in_pieces_is_bit_for_bit_the_uninterrupted_one(tmp_path, monkeypatch, method):
    few = small(method)
    whole = compute(tmp_path / "whole", few)
    assert whole["training"]["updates"] > 4

    original = Feed.__call__
    monkeypatch.setattr("benchmarks.few_shot_images.training.CHECKPOINT_EVERY", 2)
    for stop in (1, 3):  # before the first checkpoint, and one update after it

        def interrupted(self, index, stop=stop):
            if index == stop:
                raise KeyboardInterrupt
            return original(self, index)

        monkeypatch.setattr(Feed, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compute(tmp_path / "parts", few)
    monkeypatch.setattr(Feed, "__call__", original)
    parts = compute(tmp_path / "parts", few)
    assert comparable(parts) == comparable(whole)
    one, other = (
        Checkpoint.read(next((tmp_path / name).rglob(CHECKPOINT)))[1] for name in ("whole", "parts")
    )
    assert one.updates == other.updates == whole["training"]["updates"]
    assert one.layout == other.layout
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_a_finished_run_is_not_made_again(tmp_path, monkeypatch):
    few = small()
    whole = compute(tmp_path, few)
    monkeypatch.setattr(odeopt.InnerLoop, "__call__", None)  # no update may be made
    assert comparable(compute(tmp_path, few)) == comparable(whole)


@pytest.mark.slow
def test_training_ends_at_the_first_update_at_which_the_budget_is_spent(tmp_path):
    training = compute(tmp_path, small("maml", 90.0))["training"]
    each = budget.of_update("maml", odeopt.Stats(gradient_evaluations=5, hvps=5), 1.0)
    assert each == 5 + 3 * 5 + 1
    assert training["updates"] == math.ceil(90 / each)
    assert training["spent"] == training["updates"] * each
    assert [look["updates"] for look in training["looks"]] == [
        math.ceil(share * 90 / each) for share in cells.SHARES
    ]
    few = small("fomaml", math.inf, length=Length(4))
    assert compute(tmp_path / "updates", few)["training"]["updates"] == 4


def test_what_an_update_costs():
    stats = odeopt.Stats(gradient_evaluations=4, hvps=2)
    assert budget.of_update("a-maml", stats, 15.0) == 4 + 6 + 15
    assert budget.of_update("reptile", odeopt.Stats(gradient_evaluations=4), 2.0) == 12
    assert budget.of_update("comln", stats, 1.0) == pytest.approx(7 / 3)


def test_protocols_are_kept_apart():
    assert len({(s.name) for s in SIZES[Preset.PAPER].settings}) == len(
        SIZES[Preset.PAPER].settings
    )
    for (name, source, _), protocol in PAPERS.items():
        assert protocol.name == name
        assert (protocol.classes is None) is (source == MINI_IMAGENET)
    imaml, maml = (PAPERS[name, OMNIGLOT, 20] for name in ("imaml", "maml"))
    assert imaml.classes == (1200, 0, 423)
    assert maml.classes == (1100, 100, 423)
    assert (imaml.handling.inverted, maml.handling.inverted) == (False, True)
    assert imaml.handling.rotated
    assert maml.handling.rotated
    assert (imaml.net, maml.net) == ("imaml-strided", "maml-strided")


def test_presets():
    paper = SIZES[Preset.PAPER]
    assert {(s.data, s.ways, s.shots) for s in paper.settings} >= {
        (OMNIGLOT, ways, shots) for ways in (5, 20) for shots in (1, 5)
    }
    for setting in paper.settings:
        horizons = {one.horizon for one in setting.contenders if one.method == "a-maml"}
        assert horizons == {0.5, 1.0, 5.0}
        if setting.norm == "batch":
            assert {one.method for one in setting.contenders} == set(odeopt.METHODS.names())
    assert any(s.norm == "group" and s.activation == "softplus" for s in paper.settings)
    budget = SIZES[Preset.BUDGET]
    assert {s.data for s in budget.settings} == {OMNIGLOT, MINI_IMAGENET}
    assert all({c.method for c in s.contenders} == set(methods.LABELS) for s in budget.settings)
    assert paper.tests == budget.tests == 600
    assert sizes.resolve(Preset.SMOKE, None).settings[0].data == MADE_UP
    assert sizes.resolve(Preset.PAPER, None) == paper


def test_the_inner_loop_of_a_horizon():
    setting = replace(small().settings[0], protocol=PAPERS["maml", OMNIGLOT, 5])
    few = small()
    own = cells.inner(setting, Contender("a-maml"), few)
    assert (own.lr, own.steps) == (0.4, 1)
    assert cells.inner(setting, Contender("a-maml"), few, test=True).steps == 10
    for horizon, steps in ((0.5, 2), (1.0, 3), (5.0, 13)):
        found = cells.inner(setting, Contender("a-maml", horizon), few)
        assert found.steps == steps
        assert found.lr * found.steps == pytest.approx(horizon)


def test_one_task_alone_is_adapted_as_among_others(tmp_path):
    setting = small().settings[0]
    settings = Settings(Preset.SMOKE, ResultStore(tmp_path), None, torch.device("cpu"))
    params = cells.initial(settings, setting)
    adapt = cells._descent(setting, Contender("maml"), small())
    batch = Feed(sizes.episodes(setting, None, "test", 3), settings.device, torch.float64)(0)
    params = {name: leaf.double() for name, leaf in params.items()}
    together = adapt(params, batch.train, None)
    for task in range(3):
        alone = adapt(params, type(batch.train)(*(p[task : task + 1] for p in batch.train)), None)
        for name, leaf in alone.items():
            assert torch.allclose(leaf[0], together[name][task], rtol=1e-6, atol=1e-9), name


def test_intervals():
    mean, half_width = report.interval([0.0, 1.0] * 50)
    assert mean == 50
    assert half_width == pytest.approx(100 * 1.96 * 0.5 / 10)
    assert report.spread([1.0, 1.0]) == "100.00 ± 0.00"


def test_the_published_table():
    omniglot = published.pictures_column(OMNIGLOT, 20, 1)
    assert str(omniglot["a-maml T=1"]) == "96.79 ± 0.34"
    mini = published.pictures_column(MINI_IMAGENET, 5, 1)
    assert published.beside("reptile", mini) == "49.97 ± 0.32"
    assert published.beside("a-maml", mini) == "49.43 ± 1.64"
    assert published.beside("anil", mini) == ""
    assert published.pictures_column(OMNIGLOT, 5, 1) == {}


def test_an_update_that_fails_ends_the_run_with_its_reason(tmp_path, monkeypatch):
    def refuse(self, *args):
        raise odeopt.StabilityError("too long a step")

    few = small()
    monkeypatch.setattr(odeopt.InnerLoop, "__call__", refuse)
    cell = compute(tmp_path, few)
    assert cell["training"]["updates"] == 0
    assert cell["training"]["stopped"] == "update 0: StabilityError: too long a step"
    assert len(cell["accuracy"]) == 4
    ended = meta_training.ended_early({"MAML": cell["training"]["stopped"], "Reptile": ""})
    assert ended == "Runs that ended early:\n\n- MAML: update 0: StabilityError: too long a step"
