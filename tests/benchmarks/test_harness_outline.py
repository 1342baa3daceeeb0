"""Cells, reports, and benchmarks of several parts."""

from __future__ import annotations

import math
import sys
import types
from functools import partial

import matplotlib.image
import pytest
import torch

from benchmarks.harness import markdown, outline, plots, strict_json
from benchmarks.harness.outline import Cell, run_cells
from benchmarks.harness.registry import (
    Benchmark,
    IncompleteError,
    Preset,
    Settings,
    UnknownCellError,
)
from benchmarks.harness.store import ResultStore

MARK = "settings"


class Counter:
    """Makes cells that count how often they are computed."""

    def __init__(self):
        self.calls: list[str] = []

    def cell(self, key, value=1):
        def compute():
            self.calls.append(key)
            return {"value": value}

        return Cell(key, compute)


def interrupt():
    raise KeyboardInterrupt


def test_a_second_run_computes_nothing(tmp_path):
    store, counter = ResultStore(tmp_path), Counter()
    cells = [counter.cell("a", 1), counter.cell("b", 2)]
    first = run_cells("title", cells, store, MARK, "")
    assert first == {"a": {"value": 1}, "b": {"value": 2}}
    assert run_cells("title", cells, store, MARK, "") == first
    assert counter.calls == ["a", "b"]


def test_other_settings_are_computed_anew(tmp_path):
    store, counter = ResultStore(tmp_path), Counter()
    run_cells("title", [counter.cell("a")], store, "one", "")
    run_cells("title", [counter.cell("a")], store, "two", "")
    assert counter.calls == ["a", "a"]


def test_a_damaged_cell_is_computed_again(tmp_path):
    store, counter = ResultStore(tmp_path), Counter()
    cells = [counter.cell("a"), counter.cell("b")]
    run_cells("title", cells, store, MARK, "")
    store.cell_path("a").write_text('{"key": "a", "val')
    run_cells("title", cells, store, MARK, "")
    assert counter.calls == ["a", "b", "a"]
    assert store.get("a", MARK) == {"value": 1}


def test_an_interrupted_run_resumes(tmp_path, capsys):
    store, counter = ResultStore(tmp_path), Counter()
    last = counter.cell("c")
    with pytest.raises(KeyboardInterrupt):
        run_cells("title", [counter.cell("a"), Cell("b", interrupt), last], store, MARK, "")
    captured = capsys.readouterr()
    assert "1 of 3 cells are stored" in captured.err
    assert "run the same command again to resume" in captured.err
    assert captured.out == ""
    values = run_cells("title", [counter.cell("a"), counter.cell("b"), last], store, MARK, "")
    assert counter.calls == ["a", "b", "c"]
    assert list(values) == ["a", "b", "c"]


def test_a_failing_cell_keeps_the_earlier_ones(tmp_path):
    store, counter = ResultStore(tmp_path), Counter()

    def fail():
        raise ArithmeticError("diverged")

    with pytest.raises(ArithmeticError, match="diverged"):
        run_cells("title", [counter.cell("a"), Cell("b", fail)], store, MARK, "")
    assert store.get("a", MARK) == {"value": 1}
    assert store.get("b", MARK) is None


def test_values_are_the_same_fresh_and_stored(tmp_path):
    cells = [Cell("a", lambda: {"pair": (1, 2)})]
    store = ResultStore(tmp_path)
    assert run_cells("t", cells, store, MARK, "") == run_cells("t", cells, store, MARK, "")


def test_progress_names_the_cells_on_standard_error(tmp_path, capsys):
    run_cells("title", [Counter().cell("a [b] T=0.5")], ResultStore(tmp_path), MARK, "")
    captured = capsys.readouterr()
    assert captured.err == "title: 1/1 a [b] T=0.5\n"
    assert captured.out == ""


def test_a_terminal_gets_a_progress_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    run_cells("title", [Counter().cell("a"), Counter().cell("b")], ResultStore(tmp_path), MARK, "")
    error = capsys.readouterr().err
    assert "title" in error
    assert "2/2" in error


def test_keys_must_differ(tmp_path):
    counter = Counter()
    with pytest.raises(ValueError, match="same key: a"):
        run_cells("t", [counter.cell("a"), counter.cell("a")], ResultStore(tmp_path), MARK, "")
    assert counter.calls == []


def test_cells_can_be_chosen_by_a_part_of_their_keys(tmp_path):
    store, counter = ResultStore(tmp_path), Counter()
    cells = [counter.cell("ridge steps=1"), counter.cell("ridge steps=2"), counter.cell("sgd")]
    assert list(run_cells("t", cells, store, MARK, "ridge")) == ["ridge steps=1", "ridge steps=2"]
    assert counter.calls == ["ridge steps=1", "ridge steps=2"]
    assert list(run_cells("t", cells, store, MARK, "sgd")) == [cell.key for cell in cells]


def test_a_report_may_do_without_cells_only_where_it_says_so(tmp_path):
    cells = [Counter().cell(key) for key in ("a", "ab", "c")]
    settings = Settings(Preset.SMOKE, ResultStore(tmp_path), None, torch.device("cpu"), "a")
    compute = partial(
        outline.compute, settings, "t", 1, None, cells, dtype=torch.float64, threads=None
    )
    with pytest.raises(IncompleteError, match="2 of 3 cells are stored"):
        compute()
    done = compute(gaps=True)
    assert list(done.cells) == ["a", "ab"]
    with pytest.raises(IncompleteError, match="2 of 3 cells are stored"):
        outline.write(settings, "T", done, [])


@pytest.mark.parametrize(("only", "hint"), [
    ("rigde", " (did you mean 'ridge'?)"), ("ridge step=1", " (did you mean 'ridge steps=1'?)"),
    ("blah", ""),
])  # fmt: skip
def test_cells_that_there_are_not_are_refused_before_anything_is_computed(tmp_path, only, hint):
    counter = Counter()
    cells = [counter.cell("ridge steps=1"), counter.cell("sgd")]
    with pytest.raises(UnknownCellError) as caught:
        run_cells("t", cells, ResultStore(tmp_path), MARK, only)
    assert str(caught.value) == (
        f"--only: unknown cell '{only}'{hint}; expected one of 'ridge steps=1', 'sgd'."
        " A part of a key will do."
    )
    assert counter.calls == []


def test_nothing_can_be_chosen_where_there_are_no_cells(tmp_path):
    with pytest.raises(UnknownCellError, match="expected none"):
        run_cells("t", [], ResultStore(tmp_path), MARK, "a")
    assert run_cells("t", [], ResultStore(tmp_path), MARK, "") == {}


@pytest.mark.parametrize("outcome", ["did not fit", "did not finish"])
def test_a_cell_is_not_tried_where_a_smaller_one_had_no_numbers(tmp_path, outcome):
    cells = [
        Cell("one", lambda: {"outcome": outcome}),
        Cell("two", lambda: pytest.fail("tried"), {"one": "1 step"}),
        Cell("three", lambda: {"outcome": ""}, {"two": "2 steps"}),
    ]
    values = run_cells("t", cells, ResultStore(tmp_path), MARK, "")
    assert values["two"] == {"outcome": "not tried", "message": f"1 step {outcome}"}
    assert values["three"] == {"outcome": ""}


def test_a_smaller_cell_may_have_failed_in_another_process_meanwhile(tmp_path):
    store = ResultStore(tmp_path)

    def other_process():
        store.put("one", MARK, {"outcome": "did not fit"})
        return {"outcome": ""}

    cells = [
        Cell("one", lambda: pytest.fail("left out")),
        Cell("only", other_process),
        Cell("only two", lambda: pytest.fail("tried"), {"one": "1 step"}),
    ]
    values = run_cells("t", cells, store, MARK, "only")
    assert values["only two"] == {"outcome": "not tried", "message": "1 step did not fit"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.2345e-4, "1.23e-4"),
        (-0.5, "-5.00e-1"),
        (9.999, "1.00e1"),
        (1e-100, "1.00e-100"),
        (0.0, "0"),
        (math.nan, "unstable"),
        (-math.inf, "unstable"),
    ],
)
def test_scientific(value, text):
    assert markdown.scientific(value) == text


def test_with_spread():
    assert markdown.with_spread(1e-3, 2.5e-4) == "1.00e-3 ± 2.50e-4"
    assert markdown.with_spread(math.nan, 0.1) == "unstable"


def test_table():
    text = markdown.table(["N", "a|b"], [[10, 1e-3], ["x", math.inf]])
    assert text.splitlines() == [
        "| N | a\\|b |",
        "|---|---:|",
        "| 10 | 1.00e-3 |",
        "| x | unstable |",
    ]


def test_a_ragged_table_is_refused():
    with pytest.raises(ValueError, match="1 entries under 2 headers"):
        markdown.table(["a", "b"], [[1]])


@pytest.mark.parametrize("count", [1, 9])
def test_a_plot_is_a_readable_png(tmp_path, count):
    x = [10, 100, 1000, 10000]
    lines = [
        plots.Series(f"line {k}", x, [1.0, math.nan, 0.0, 1e-3 * (k + 1)]) for k in range(count)
    ]
    slope = plots.Slope("first order", -1, (10, 1.0), 1000)
    path = plots.loglog(tmp_path / "p.png", plots.Labels("title", "N", "error"), lines, [slope])
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] > 500
    assert picture.min() < picture.max()
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_plot_leaves_the_old_one(tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="shorter"):
        plots.loglog(path, plots.Labels("", "", ""), [plots.Series("a", [1, 2], [1])])
    assert path.read_bytes() == b"old"


def test_the_environment_is_plain_data():
    found = outline.environment(torch.device("cpu"))
    assert strict_json.loads(strict_json.dumps(found)) == found
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["device_name"]


@pytest.fixture
def ran(monkeypatch):
    """What was asked of the parts "one" and "two"."""
    asked = []

    def part(name):
        def run(settings):
            asked.append((name, settings.only))
            assert torch.get_default_dtype() is torch.float64  # that of all tests
            torch.set_default_dtype(torch.float32)
            if settings.only == "unknown" or (settings.only == "a" and name == "two"):
                raise UnknownCellError("no such cell")
            if settings.only == "half":
                raise IncompleteError(1, 2)
            settings.store.write_text("report.md", f"# Part {name}\n\n## Inside\n\n![p](p.png)\n")

        module = types.ModuleType(f"a_part_{name}")
        module.run = run
        monkeypatch.setitem(sys.modules, module.__name__, module)

    part("one")
    part("two")
    return asked


def run(tmp_path, only=""):
    parts = {"one": "a_part_one", "two": "a_part_two"}
    benchmark = Benchmark("all", "", title="All", parts=parts)
    settings = Settings(
        Preset.SMOKE, ResultStore(tmp_path), None, torch.device("cpu"), only
    )  # fmt: skip
    benchmark.run(settings)
    return (tmp_path / "report.md").read_text()


def test_one_report_has_all_parts_one_level_down(ran, tmp_path):
    text = run(tmp_path)
    assert ran == [("one", ""), ("two", "")]
    assert text.startswith("# All\n")
    assert "- Part one (`--only one`)\n- Part two (`--only two`)" in text
    assert "\n## Part two\n\n### Inside\n\n![p](two/p.png)" in text
    assert "Not computed" not in text


def test_one_part_by_itself(ran, tmp_path):
    text = run(tmp_path, "two")
    assert ran == [("two", "")]
    assert "## Part two" in text
    assert "Not computed yet: one." in text
    assert "## Part one" in run(tmp_path, "one")


def test_cells_are_looked_for_in_every_part(ran, tmp_path):
    run(tmp_path, "a")
    assert ran == [("one", "a"), ("two", "a")]
    with pytest.raises(UnknownCellError):
        run(tmp_path, "unknown")
    with pytest.raises(IncompleteError):
        run(tmp_path, "half")
