"""The benchmark transformer."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks.cost import transformer
from benchmarks.cost.transformer import SIZES
from benchmarks.harness import processes
from benchmarks.harness.registry import Preset

SMALL = SIZES[Preset.SMOKE]
CPU = torch.device("cpu")


def test_the_gradient_agrees_with_unrolled_autograd():
    assert transformer.check(SMALL, CPU)["error"] < 1e-10


def test_the_plain_training_is_the_same_training():
    problem = transformer.make(SMALL, CPU, torch.float64)
    value = transformer.meta_gradient(problem, None)().value
    for pieces in (1, SMALL.micro):
        params = transformer.plain_training(problem, pieces)()
        plain = problem.outer_loss(params, problem.validation, problem.weights())
        assert torch.allclose(plain, value, rtol=1e-10)


def test_peaks():
    found = {kind: transformer.measure(kind, SMALL, "cpu") for kind in transformer.PEAKS}
    assert found[transformer.ACCUMULATED]["bytes"] < found[transformer.PLAIN]["bytes"]
    state = 3 * 4 * found[transformer.META]["parameters"]
    assert found[transformer.META]["kept_bytes"] == SMALL.slots * state
    assert found[transformer.META]["bytes"] > found[transformer.META]["kept_bytes"]


def test_the_report_of_a_smoke_run_and_a_second_one(tmp_path, monkeypatch):
    def in_this_process(function, *args, limit):
        assert function is transformer.measure
        assert limit == SMALL.seconds
        return function(*args)

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
