"""The cost benchmark: its lines, its processes, its fits and its report."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import __main__ as cli
from benchmarks import methods
from benchmarks.cost import lines, resident, updates
from benchmarks.cost.lines import LINES
from benchmarks.harness import outline, processes, strict_json
from benchmarks.harness.registry import Preset, Settings
from benchmarks.harness.store import ResultStore
from benchmarks.problems.tasks import move

SMALL = updates.SIZES[Preset.SMOKE]
TINY = replace(SMALL, tasks=2, shots=4, repeats=1, memory_gib=16.0, seconds=30.0)


def call(*arguments):
    return CliRunner().invoke(
        cli.app, ["cost", "--only", "updates", "--preset", "smoke", *arguments]
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    pytest.importorskip("higher")
    folder = tmp_path_factory.mktemp("cost")
    result = call("--results", str(folder))
    assert result.exit_code == 0, result.output
    return folder / "updates"


@pytest.mark.filterwarnings("ignore")  # of the other packages
@pytest.mark.parametrize("name", ["higher", "torchopt"])
def test_every_exact_maml_gives_the_same_gradient(name, device):
    pytest.importorskip(name)
    given = move(lines.inputs(2, 6, device), device, torch.float64)
    expected = lines.make_update(LINES["maml"], 5, given).run()
    update = lines.make_update(LINES[name], 5, given)
    for _ in range(2):  # a second run starts anew
        torch.testing.assert_close(update.run(), expected, rtol=1e-9, atol=1e-12)


def test_every_method_has_a_line_and_two_are_compiled_as_well():
    assert {line.method for line in LINES.values()} == {
        *methods.PAPER, *methods.OTHERS, "higher", "torchopt"
    }  # fmt: skip
    compiled = {line.method for line in LINES.values() if line.compile == "inductor"}
    assert compiled == {"a-maml", "maml"}
    for preset in updates.SIZES.values():
        assert set(preset.lines or ()) <= set(LINES)


def test_a_job_gives_seconds_and_memory():
    found = updates.measure("maml", 3, TINY, "cpu")
    assert found["outcome"] == ""
    assert found["seconds"] > 0
    assert found["live_bytes"] > 3 * 2 * 1185 * 4  # three states of two tasks
    assert found["resident_bytes"] >= 0
    assert found["together"] == 2


@pytest.mark.slow
def test_a_job_that_needs_too_much_memory_does_not_fit():
    """In a process of its own, since this one may have freed as much before."""
    found = processes.run(
        updates.measure, "maml", 3, replace(TINY, shots=100_000, memory_gib=0.01), "cpu", limit=90.0
    )
    assert found == {"outcome": "did not fit", "message": "more than 0.01 GiB"}


@pytest.mark.slow
def test_a_process_of_its_own_measures_the_same():
    found = processes.run(updates.measure, "fomaml", 3, TINY, "cpu", limit=90.0)
    assert found["outcome"] == ""
    assert found["live_bytes"] < updates.measure("maml", 3, TINY, "cpu")["live_bytes"]


def test_more_steps_are_not_tried_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "run", lambda *_, **__: pytest.fail("tried"))
    settings = Settings(Preset.SMOKE, ResultStore(tmp_path), None, torch.device("cpu"))
    sizes = replace(SMALL, lines=("maml",), steps=(1, 4, 9))
    first, *larger = updates.cells(settings, sizes)[:3]
    cells = [replace(first, compute=lambda: {"outcome": "did not fit"}), *larger]
    _, second, third = outline.run_cells("", cells, settings.store, "", "").values()
    assert second == third == {"outcome": "not tried", "message": "1 steps did not fit"}


def test_linear_growth_is_told_from_exponential_growth():
    steps = [1, 10, 50, 200, 1000]
    linear = updates.growth(steps, [1e6 + 5e3 * n for n in steps])
    assert linear.per_step == pytest.approx(5e3)
    assert linear.start == pytest.approx(1e6)
    assert linear.misfit < 1e-9
    assert linear.power == pytest.approx(1)
    exponential = updates.growth(steps, [1e6 * 1.01**n for n in steps])
    assert exponential.misfit > 0.5
    assert updates.growth([5], [1.0]) is None


@pytest.mark.slow
def test_the_report_of_a_smoke_run_has_every_table(smoke):
    text = (smoke / "report.md").read_text()
    for title in ("Seconds of one meta-update", "Peak of live tensors, MiB", "per task that is in",
                  "Growth of resident memory", "higher (MAML) needs"):  # fmt: skip
        assert title in text
    assert "times as fast (at least 5 wanted)" in text
    assert "## Cells without numbers\n\n- none" in text
    for name in ("seconds.png", "live_bytes.png"):
        assert (smoke / name).read_bytes().startswith(b"\x89PNG")
    cells = strict_json.loads((smoke / "results.json").read_bytes())["cells"]
    own = {"resident elementwise 1 MiB", "resident layer 1 MiB"}
    assert set(cells) == {"higher steps=1", "higher steps=4", "check", *own}
    for name in own:
        cell = cells[name]["long"]
        assert cell["released"] < 2**22 <= cell["budget"] <= cell["live"] <= cell["growth"]
    assert cells["check"]["cosine"] > 0.999


@pytest.mark.slow
def test_a_second_run_computes_nothing(smoke, monkeypatch):
    monkeypatch.setattr(processes, "run", lambda *_, **__: pytest.fail("computed again"))
    assert call("--results", str(smoke.parent)).exit_code == 0


def test_missing_packages_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "find_spec", lambda _: None)
    monkeypatch.setattr(resident, "cells", lambda *_: [])
    settings = Settings(Preset.SMOKE, ResultStore(tmp_path), None, torch.device("cpu"))
    updates.run(settings)
    text = (tmp_path / "report.md").read_text()
    assert "| higher (MAML) | not installed | not installed |" in text
    assert "higher (MAML): the package is not installed" in text
