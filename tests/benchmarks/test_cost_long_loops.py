"""The part long-loops of the benchmark cost."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks.cost.long_loops import child, itself, loops, report, sizes
from benchmarks.cost.long_loops.sizes import Point
from benchmarks.harness import outline, processes, strict_json
from benchmarks.harness.registry import Preset, Settings
from benchmarks.harness.store import ResultStore
from benchmarks.problems import models
from odeopt.checkpoint.binomial import optimal_replays
from odeopt.testing import relative_error

CPU = torch.device("cpu")
JOB = child.Job("odeopt", Point(300, 8, 3), 2, 4.0, 30.0, "cpu", "trace")


@pytest.mark.filterwarnings("ignore")  # of the other packages
@pytest.mark.parametrize("line", sorted(loops.PEERS))
def test_every_package_gives_the_same_gradient(line):
    pytest.importorskip(line)
    loop = loops.make(Point(300, 7, 3), CPU)
    expected, stats = loops.ours(loop, loops.optimizer(loop, "trace"))()
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
    opt = loops.optimizer(loop, "trace")
    with torch.no_grad():
        final = opt.solve(loop.params, loops.odeopt.Stream(loop.stream), loops._grid(loop)).params
    for own, theirs in zip(final.values(), network[0].parameters(), strict=True):
        assert torch.allclose(own, theirs, atol=1e-6)


@pytest.mark.parametrize("wanted", [1_000, 10_000, 1_000_000])
def test_as_many_parameters_as_asked_for(wanted):
    assert models.count(loops.model(wanted).init(0)) == pytest.approx(wanted, rel=0.04)


@pytest.mark.slow
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
    monkeypatch.setattr(processes, "run", lambda *_, **__: pytest.fail("tried"))
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
    lines = sum(loops.installed(line) for line in loops.LABELS)
    assert len(keys) == len(set(keys)) == lines + 1  # and the kernels


@pytest.mark.slow
def test_the_report_of_a_smoke_run_and_a_second_one(tmp_path, monkeypatch):
    monkeypatch.setattr(loops, "installed", lambda line: line == "odeopt")
    args = ["cost", "--only", "long-loops", "--preset", "smoke", "--results", str(tmp_path)]
    assert CliRunner().invoke(command.app, args, catch_exceptions=False).exit_code == 0
    folder = tmp_path / "long-loops"
    text = (folder / "report.md").read_text()
    assert "| 1,000, 60, 50 |" in text
    assert "- higher: not installed" in text
    assert "The least is 157: Revolve's number,\n156," in text
    assert len(strict_json.loads((folder / "results.json").read_bytes())["cells"]) == 2
    for name in ("steps-ratio", "steps-bytes", "parameters-ratio", "parameters-bytes"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(processes, "run", lambda *_, **__: pytest.fail("computed again"))
    assert CliRunner().invoke(command.app, args, catch_exceptions=False).exit_code == 0


def test_a_solve_is_compared_with_as_many_calls_of_its_kernels(monkeypatch):
    calls = {"step": 0, "pull": 0}
    make = itself.make_kernels

    def counted(*args):
        kernels = make(*args)

        class Counted:
            def step(self):
                return count("step", kernels.step())

            def pull(self, adjoint):
                return count("pull", kernels.pull(adjoint))

        return Counted()

    def count(name, kernel):
        def call(*args):
            calls[name] += 1
            return kernel(*args)

        return call

    monkeypatch.setattr(itself, "make_kernels", counted)
    found = itself.measure(itself.Job(Point(300, 9, 3), "trace", 1, "cpu", 4.0))
    assert found["advances"] == found["bound"] == 9 + optimal_replays(9, 3)
    assert found["stored_states"] == 3
    assert calls == {"step": found["advances"], "pull": 9}
    assert found["ratio"] == found["seconds"] / found["kernel_seconds"]


@pytest.mark.parametrize(
    ("ratio", "advances", "said"),
    [(1.29, 30, ": met"), (1.31, 30, "not met"), (1.2, 31, "not met")],
)
def test_the_comparison_says_whether_it_is_met(ratio, advances, said):
    size = sizes.SIZES[Preset.SMOKE]
    cell = {
        "outcome": "", "ratio": ratio, "seconds": 1.0, "kernel_seconds": 0.9,
        "advances": advances, "bound": 30,
    }  # fmt: skip
    run = outline.Run("", {}, {report.key(report.ITSELF, size.itself): cell})
    assert said in report._itself(run, size)
