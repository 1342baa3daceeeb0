"""The benchmark long-loops."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks.harness import processes, strict_json
from benchmarks.harness.registry import Preset, Settings
from benchmarks.harness.store import ResultStore
from benchmarks.long_loops import child, loops, report, sizes
from benchmarks.long_loops.sizes import Point
from benchmarks.problems import models
from odeopt.testing import relative_error

CPU = torch.device("cpu")
JOB = child.Job("odeopt", (300, 8, 3), 2, 4.0, 30.0, "cpu")


@pytest.mark.filterwarnings("ignore")  # of the other packages
@pytest.mark.parametrize("line", sorted(loops.PEERS))
def test_every_package_gives_the_same_gradient(line):
    pytest.importorskip(line)
    loop = loops.make(Point(300, 7, 3), CPU)
    expected, stats = loops.ours(loop, loops.optimizer(loop))()
    assert stats.hvps == 7
    run = loops.PEERS[line](loop)
    for _ in range(2):  # a second run starts anew
        found, _ = run()
        assert relative_error(found, expected) < 1e-4  # float32


def test_the_plain_training_is_the_same_training():
    loop = loops.make(Point(300, 5, 3), CPU)
    network = []
    original = loops.peers.module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loops.peers, "module", lambda params: network.append(original(params)) or network[0]
        )
        loops.plain(loop)()
    opt = loops.optimizer(loop)
    with torch.no_grad():
        final = opt.solve(loop.params, loops.odeopt.Stream(loop.stream), loops._grid(loop)).params
    for own, theirs in zip(final.values(), network[0].parameters(), strict=True):
        assert torch.allclose(own, theirs, atol=1e-6)


@pytest.mark.parametrize("wanted", [1_000, 10_000, 1_000_000])
def test_as_many_parameters_as_asked_for(wanted):
    assert models.count(loops.model(wanted).init(0)) == pytest.approx(wanted, rel=0.04)


def test_a_job_gives_ratios_and_counts():
    found = child.measure(JOB)
    assert found["outcome"] == ""
    assert found["meta_ratio"] > found["forward_ratio"] > 0
    assert found["replayed"] == found["bound"] > 0
    assert found["runs"] == 2
    state = 2 * 4 * found["parameters"]
    assert found["kept_bytes"] == 3 * state
    assert found["meta_bytes"] > found["kept_bytes"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory")
def test_a_job_that_needs_too_much_memory_does_not_fit(monkeypatch):
    greedy = {"plain": lambda: None, "meta": lambda: (torch.zeros(2**30), None)}
    monkeypatch.setattr(child, "runnables", lambda *_: greedy)
    found = child.measure(replace(JOB, memory_gib=0.01))
    assert found == {"outcome": "did not fit", "message": "more than 0.01 GiB"}


def test_larger_ones_are_not_tried_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "run_module", lambda *_: pytest.fail("tried"))
    settings = Settings(Preset.SMOKE, ResultStore(tmp_path), None, CPU)
    small = sizes.SIZES[Preset.SMOKE]
    point = Point(1000, 10, 5)
    failed = {"outcome": "did not fit", "message": ""}
    found = report._compute(settings, small, "odeopt", point, "smaller", lambda _: failed)
    assert found == {"outcome": "not tried", "message": "smaller did not fit"}


def test_a_point_of_both_lines_is_measured_once(tmp_path):
    settings = Settings(Preset.SMOKE, ResultStore(tmp_path), None, CPU)
    small = sizes.SIZES[Preset.SMOKE]
    keys = [cell.key for cell in report.cells(settings, small, "")]
    assert len(keys) == len(set(keys)) == sum(loops.installed(line) for line in loops.LABELS)


def test_the_report_of_a_smoke_run_and_a_second_one(tmp_path, monkeypatch):
    monkeypatch.setattr(loops, "installed", lambda line: line == "odeopt")
    args = ["long-loops", "--preset", "smoke", "--results", str(tmp_path)]
    assert CliRunner().invoke(command.app, args, catch_exceptions=False).exit_code == 0
    text = (tmp_path / "report.md").read_text()
    assert "| 1,000, 60, 50 |" in text
    assert "- higher: not installed" in text
    assert len(strict_json.loads((tmp_path / "results.json").read_bytes())["cells"]) == 1
    for name in ("steps-ratio", "steps-bytes", "parameters-ratio", "parameters-bytes"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(processes, "run_module", lambda *_: pytest.fail("computed again"))
    assert CliRunner().invoke(command.app, args, catch_exceptions=False).exit_code == 0
