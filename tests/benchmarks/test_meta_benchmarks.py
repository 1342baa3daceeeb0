"""The benchmarks that meta-train: their data, their cells and their reports."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import odeopt
from benchmarks import __main__ as command
from benchmarks import meta_training, methods, regression
from benchmarks.comparison import LEVEL, p_value_above
from benchmarks.harness import strict_json
from benchmarks.harness.registry import Preset
from benchmarks.methods import Inner
from benchmarks.problems import models
from benchmarks.problems.functions import ALPINE, FUNCTIONS, Regression
from benchmarks.problems.models import Problem
from benchmarks.regression import SIZES, Setting


def run(*args):
    return CliRunner().invoke(command.app, list(args), catch_exceptions=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["regression"])
def test_the_smoke_preset_writes_a_whole_report(tmp_path, name):
    result = run(name, "--preset", "smoke", "--results", str(tmp_path))
    assert result.exit_code == 0
    report = (tmp_path / "report.md").read_text()
    for label in ("A-MAML", "MAML", "COMLN"):
        assert f"| {label} |" in report
    found = strict_json.loads((tmp_path / "results.json").read_text())
    trained = {key: cell for key, cell in found["cells"].items() if "diagnosis" not in key}
    assert len(trained) == 3
    for cell in trained.values():
        assert cell["training"]["updates"] == 2
        assert cell["training"]["failed_tasks"] == 0
        assert cell["training"]["stopped"] == ""
    for plot in tmp_path.glob("*.png"):
        assert f"({plot.name})" in report


@pytest.mark.slow
def test_the_regression_report_says_who_serves_a_mamls_objective_best(tmp_path):
    run("regression", "--preset", "smoke", "--results", str(tmp_path))
    found = strict_json.loads((tmp_path / "results.json").read_text())["cells"]
    cell = next(value for key, value in found.items() if key.endswith("diagnosis"))
    assert set(cell["objective"]) == {"a-maml", "maml"}
    assert cell["best"] == "maml"
    start, ends = fmean(cell["start"]), {k: fmean(v) for k, v in cell["continued"].items()}
    assert all(end < start for end in ends.values())
    report = (tmp_path / "report.md").read_text()
    assert f"goes from {start:.3f} to {ends['a-maml']:.3f} by A-MAML" in report


@pytest.mark.parametrize(
    ("p", "end", "said"),
    [
        (0.01, 0.3, "as well, further than those of Reptile: it is the way there that is slow"),
        (0.3, 0.3, "as well, about as far as those of Reptile."),
        (0.99, 0.3, "as well, but less than those of Reptile"),
        (0.99, 0.5, "with as many updates of the same outer optimiser."),
    ],
)
def test_the_reason_that_is_given_is_what_was_measured(p, end, said):
    found = {
        "objective": {"a-maml": 0.2, "reptile": 0.1}, "untrained": 0.5, "best": "reptile",
        "updates": 500, "start": [0.4], "continued": {"a-maml": [end], "reptile": [0.35]}, "p": p,
    }  # fmt: skip
    text = regression.explained(found)
    assert said in text
    assert ("From there" in text) == (end < 0.4)


def test_only_some_cells_on_request(tmp_path):
    args = ("regression", "--preset", "smoke", "--results", str(tmp_path))
    result = run(*args, "--only", "0 maml")
    assert result.exit_code == 0
    assert "1 of 4 cells are stored" in result.stdout
    assert not (tmp_path / "report.md").exists()
    assert len(list((tmp_path / "cells").glob("*.json"))) == 1


@pytest.mark.slow
def test_a_report_of_some_settings_names_those_that_were_not_run(tmp_path, monkeypatch):
    sizes = SIZES[Preset.SMOKE]
    more = (*sizes.settings, Setting("alpine", 10, "code", (0, 1)))
    few = replace(sizes, settings=more, methods=("maml",))
    monkeypatch.setitem(SIZES, Preset.SMOKE, few)
    args = ("regression", "--preset", "smoke", "--results", str(tmp_path))
    run(*args, "--only", "alpine 10shot-10val (code) seed=1 maml")
    report = (tmp_path / "report.md").read_text()
    missing = "cosmixture 10shot-10val (code), seed 0; alpine 10shot-10val (code), seed 0"
    assert f"**Not run:** {missing}." in report
    assert "## alpine 10shot-10val (code)" in report
    assert "1 seed(s)" in report
    assert "## cosmixture" not in report


def test_every_registered_method_is_in_the_benchmarks():
    assert set(methods.PAPER) | set(methods.OTHERS) == set(odeopt.METHODS.names())
    assert set(methods.LABELS) == set(odeopt.METHODS.names())


@pytest.mark.parametrize("protocol", ["code", "text"])
def test_alpine_functions(protocol):
    draws = [ALPINE.draw(protocol, torch.Generator().manual_seed(s)) for s in range(200)]
    phases = torch.stack([f.phases for f in draws])
    shifts = phases - (math.pi if protocol == "code" else 0)
    assert shifts.abs().max() < 5 * math.pi / 12
    assert shifts.abs().max() > 4 * math.pi / 12
    assert bool((shifts[:, 0] == shifts[:, 1]).all()) is (protocol == "code")
    x = torch.tensor([[2.0, -3.0]])
    by_hand = sum(
        abs(v * math.sin(v + p) + 0.1 * v)
        for v, p in zip([2.0, -3.0], phases[0].tolist(), strict=True)
    )
    assert draws[0](x).item() == pytest.approx(by_hand, rel=1e-12)
    task = ALPINE.tasks([0, 1], protocol, shots=7)
    assert task.train.x.shape == (2, 7, 2)
    assert not torch.equal(task.train.x, task.validation.x)


@pytest.fixture(scope="module")
def protocols():
    return {
        (f, p): Regression(f, p, 20) for f in ("cosmixture", "alpine") for p in ("code", "text")
    }


@pytest.mark.parametrize("family", ["cosmixture", "alpine"])
@pytest.mark.parametrize("protocol", ["code", "text"])
def test_the_regression_protocol(protocols, family, protocol):
    data = protocols[family, protocol]
    assert data.episodes == (1000 if protocol == "code" else 100)
    task = data.train_batch([0, 1, 0])
    assert torch.equal(task.train.x[0], task.train.x[2])
    assert not torch.equal(task.train.x[0], task.train.x[1])
    support, test = data.held_out_support(), data.held_out_grid()
    assert support.x.shape == (FUNCTIONS, 20, 2)
    assert test.x.shape == (FUNCTIONS, 961 if protocol == "code" else 100, 2)
    assert data.constant_rmse() == pytest.approx(1.0, abs=0.05)
    if protocol == "code":  # another episode of the same function has other points
        again = data.train_batch([FUNCTIONS])
        assert not torch.equal(again.train.x[0], task.train.x[0])


def test_wrong_settings_of_the_protocol_are_refused():
    with pytest.raises(ValueError, match="expected 'cosmixture' or 'alpine'"):
        Regression("sine", "code", 5)
    with pytest.raises(ValueError, match="shots is 0"):
        Regression("alpine", "code", 0)


def problem():
    return Problem(models.mlp([2, 6, 1]), models.half_mean_square)


def test_adaptation_by_descent_and_by_adam():
    data = Regression("alpine", "text", 8)
    support = data.held_out_support()
    params = problem().model.init(0)
    states = meta_training.adapt_by_descent(problem(), params, support, 0.05, 6, 3)
    assert len(states) == 3
    alone = {name: leaf.clone() for name, leaf in params.items()}
    for _ in range(6):
        batch = type(support)(support.x[4], support.y[4])
        gradient = torch.func.grad(problem().loss)(alone, batch)
        alone = {name: alone[name] - 0.05 * gradient[name] for name in alone}
    for name, leaf in alone.items():
        assert torch.allclose(states[-1][name][4], leaf, rtol=1e-12, atol=1e-14)
        assert torch.equal(states[0][name][4], params[name])
    adam = meta_training.adapt_by_adam(problem(), params, support, epochs=4, every=2)
    own = [leaf.clone().requires_grad_() for leaf in params.values()]
    optimizer = torch.optim.Adam(own, lr=1e-3, weight_decay=1e-6)
    for _ in range(4):
        optimizer.zero_grad()
        problem().loss(dict(zip(params, own, strict=True)), batch).backward()
        optimizer.step()
    for (name, found), leaf in zip(adam[-1].items(), own, strict=True):
        assert torch.allclose(found[4], leaf, rtol=1e-10, atol=1e-12), name


def test_training_goes_on_from_its_checkpoint(tmp_path):
    data = Regression("alpine", "text", 8).train_batch(range(10))
    method = methods.build("maml", problem(), Inner(0.05, 3, 3))
    params = problem().model.init(0)
    pool = odeopt.TaskPool(*data, 5, 0)
    whole = meta_training.train(method, params, pool, 4, tmp_path / "whole")
    meta_training.train(method, params, pool, 2, tmp_path / "parts")
    parts = meta_training.train(method, params, pool, 4, tmp_path / "parts")
    assert all(torch.equal(whole.params[name], parts.params[name]) for name in params)
    assert parts.record["updates"] == 4
    assert [value for _, value in parts.record["curve"]] == [
        value for _, value in whole.record["curve"]
    ]


def test_what_only_compares_gradients_does_not_load_the_paired_test():
    code = "import sys, benchmarks.comparison; assert 'scipy.stats' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@given(st.lists(st.floats(-1, 1), min_size=8, max_size=20, unique=True))
def test_the_paired_test_sees_a_shift(values):
    shifted = [value + 3 for value in values]
    assert p_value_above(shifted, values) < LEVEL
    assert p_value_above(values, shifted) > 1 - LEVEL
    assert p_value_above(values, values) == 1.0
