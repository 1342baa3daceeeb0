"""The benchmark transformer."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks.cost.transformer import child, training
from benchmarks.cost.transformer.sizes import SIZES
from benchmarks.harness import processes
from benchmarks.harness.registry import Preset

SMALL = SIZES[Preset.SMOKE]
CPU = torch.device("cpu")


def job(kind):
    return child.Job(kind, SMALL, "cpu")


def test_the_gradient_agrees_with_unrolled_autograd():
    assert child.check(SMALL, CPU)["error"] < 1e-10


def test_the_plain_training_is_the_same_training():
    problem = training.make(SMALL, CPU, torch.float64)
    value = training.meta(problem, None)().value
    for pieces in (1, SMALL.micro):
        params = training.plain(problem, pieces)()
        plain = problem.outer_loss(params, problem.validation, problem.weights())
        assert torch.allclose(plain, value, rtol=1e-10)


def test_peaks():
    found = {kind: child.measure(job(kind)) for kind in child.PEAKS}
    assert found[child.ACCUMULATED]["bytes"] < found[child.PLAIN]["bytes"]
    state = 3 * 4 * found[child.META]["parameters"]
    assert found[child.META]["kept_bytes"] == SMALL.slots * state
    assert found[child.META]["bytes"] > found[child.META]["kept_bytes"]


def test_the_report_of_a_smoke_run_and_a_second_one(tmp_path, monkeypatch):
    def in_this_process(function, job, limit):
        assert function is child.measure
        assert limit == SMALL.seconds
        return function(job)

    monkeypatch.setattr(processes, "run", in_this_process)
    args = ["cost", "--only", "transformer", "--preset", "smoke", "--results", str(tmp_path)]
    assert CliRunner().invoke(command.app, args, catch_exceptions=False).exit_code == 0
    folder = tmp_path / "transformer"
    text = (folder / "report.md").read_text()
    assert "the gradient agrees with unrolled autograd" in text
    assert "1.5 times that of plain training" in text
    assert (folder / "weights.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(processes, "run", lambda *_, **__: pytest.fail("computed again"))
    assert CliRunner().invoke(command.app, args, catch_exceptions=False).exit_code == 0
