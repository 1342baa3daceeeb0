"""The part long-loops of the benchmark cost."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks.cost import long_loops
from benchmarks.cost.long_loops import Point
from benchmarks.harness import outline, processes, strict_json
from benchmarks.harness.registry import Preset, Settings
from benchmarks.harness.store import ResultStore
from benchmarks.problems import models
from odeopt.checkpoint.binomial import optimal_replays
from odeopt.testing import relative_error

CPU = torch.device("cpu")
SIZES = replace(long_loops.SIZES[Preset.SMOKE], repeats=2, memory_gib=4.0, seconds=30.0)


@pytest.mark.filterwarnings("ignore")  # of the other packages
@pytest.mark.parametrize("line", sorted(long_loops.PEERS))
def test_every_package_gives_the_same_gradient(line):
    pytest.importorskip(line)
    loop = long_loops.make(Point(300, 7, 3), CPU)
    expected, stats = long_loops.ours(loop, long_loops.optimizer(loop, "trace"))()
    assert stats.hvps == 7
    run = long_loops.by_peer(line, loop)
    for _ in range(2):  # a second run starts anew
        found, _ = run()
        assert relative_error(found, expected) < 1e-4  # float32


def test_the_plain_training_is_the_same_training():
    loop = long_loops.make(Point(300, 5, 3), CPU)
    network = []
    original = long_loops.peers.module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            long_loops.peers,
            "module",
            lambda params: network.append(original(params)) or network[0],
        )
        long_loops.plain(loop)()
    opt = long_loops.optimizer(loop, "trace")
    with torch.no_grad():
        final = opt.solve(loop.params, long_loops.odeopt.Stream(loop.stream), loop.grid()).params
    for own, theirs in zip(final.values(), network[0].parameters(), strict=True):
        assert torch.allclose(own, theirs, atol=1e-6)


@pytest.mark.parametrize("wanted", [1_000, 10_000, 1_000_000])
def test_as_many_parameters_as_asked_for(wanted):
    assert models.count(long_loops.model(wanted).init(0)) == pytest.approx(wanted, rel=0.04)


@pytest.mark.slow
def test_a_job_gives_ratios_and_counts():
    found = long_loops.measure("odeopt", Point(300, 8, 3), SIZES, "cpu")
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
    monkeypatch.setattr(long_loops, "runnables", lambda *_: greedy)
    few = replace(SIZES, memory_gib=0.01)
    found = long_loops.measure("odeopt", Point(300, 8, 3), few, "cpu")
    assert found == {"outcome": "did not fit", "message": "more than 0.01 GiB"}


def test_larger_ones_are_not_tried_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "run", lambda *_, **__: pytest.fail("tried"))
    settings = Settings(Preset.SMOKE, ResultStore(tmp_path), None, CPU)
    quick = long_loops.SIZES[Preset.QUICK]
    first, *larger = long_loops.cells(settings, quick)[:3]
    cells = [replace(first, compute=lambda: {"outcome": "did not fit"}), *larger]
    _, second, third = outline.run_cells("", cells, settings.store, "", "").values()
    assert second == third == {"outcome": "not tried", "message": f"{first.key} did not fit"}


def test_a_point_of_both_lines_is_measured_once(tmp_path):
    settings = Settings(Preset.SMOKE, ResultStore(tmp_path), None, CPU)
    small = long_loops.SIZES[Preset.SMOKE]
    keys = [cell.key for cell in long_loops.cells(settings, small)]
    lines = sum(long_loops.installed(line) for line in long_loops.LABELS)
    assert len(keys) == len(set(keys)) == lines + 1  # and the kernels


@pytest.mark.slow
def test_the_report_of_a_smoke_run_and_a_second_one(tmp_path, monkeypatch):
    monkeypatch.setattr(long_loops, "installed", lambda line: line == "odeopt")
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
    make = long_loops.make_kernels

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

    monkeypatch.setattr(long_loops, "make_kernels", counted)
    found = long_loops.measure_kernels(replace(SIZES, itself=Point(300, 9, 3), repeats=1), "cpu")
    assert found["advances"] == found["bound"] == 9 + optimal_replays(9, 3)
    assert found["stored_states"] == 3
    assert calls == {"step": found["advances"], "pull": 9}
    assert found["ratio"] == found["seconds"] / found["kernel_seconds"]


@pytest.mark.parametrize(
    ("ratio", "advances", "said"),
    [(1.29, 30, ": met"), (1.31, 30, "not met"), (1.2, 31, "not met")],
)
def test_the_comparison_says_whether_it_is_met(ratio, advances, said):
    size = long_loops.SIZES[Preset.SMOKE]
    cell = {
        "outcome": "", "ratio": ratio, "seconds": 1.0, "kernel_seconds": 0.9,
        "advances": advances, "bound": 30,
    }  # fmt: skip
    key = long_loops.key(long_loops.ITSELF, size.itself)
    run = outline.Run("", {}, {key: cell}, 1)
    assert said in long_loops._itself(run, size)
