"""The collaborative-filtering benchmark from end to end, and the command that checks its data."""

from __future__ import annotations

import gzip
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import check_data, methods
from benchmarks import collaborative_filtering as benchmark
from benchmarks.check_data import EXPECTED
from benchmarks.collaborative_filtering import MADE_UP, SIZES, Setting
from benchmarks.harness import strict_json
from benchmarks.harness.registry import Preset, Settings
from benchmarks.harness.store import ResultStore
from benchmarks.problems import published, ratings
from benchmarks.problems.ratings import SOURCES, Table


def run(app, *args):
    return CliRunner().invoke(app, list(args), catch_exceptions=False)


@pytest.mark.slow
def test_the_smoke_preset_writes_a_whole_report_without_data(tmp_path):
    (tmp_path / "empty").mkdir()
    options = ("--preset", "smoke", "--results", str(tmp_path), "--data", str(tmp_path / "empty"))
    assert run(command.app, "collaborative-filtering", *options).exit_code == 0
    written = (tmp_path / "report.md").read_text()
    assert "the ratings are made up" in written
    for label in ("A-MAML", "MAML", "COMLN", "global mean", "item and user biases, shrunk"):
        assert f"| {label} |" in written
    for plot in tmp_path.glob("*.png"):
        assert f"({plot.name})" in written
    found = strict_json.loads((tmp_path / "results.json").read_text())["cells"]
    assert len(found) == 4
    base = found.pop(next(key for key in found if key.endswith(benchmark.BASELINES)))
    for cell in found.values():
        assert cell["training"]["updates"] == 2
        assert (cell["training"]["failed_tasks"], cell["training"]["stopped"]) == (0, "")
        for mode in benchmark.MODES:
            assert len(cell[mode]["held_out"]) == base["evaluated_users"]
            assert len(cell[mode]["adaptation"]) == base["test_users"] == 10
            assert all(0 < error < 3 for errors in cell[mode].values() for error in errors)
        assert cell["curve"]["steps"] == [0, 5, 10]
        assert cell["curve"]["mean"][-1] == pytest.approx(
            sum(cell["gd"]["held_out"]) / base["evaluated_users"], rel=1e-5
        )


def test_other_presets_ask_for_their_data(tmp_path):
    options = ("--preset", "quick", "--results", str(tmp_path), "--data", str(tmp_path))
    result = run(command.app, "collaborative-filtering", *options)
    assert result.exit_code == 1
    assert SOURCES["movielens-small-2016"].file in result.stderr
    assert "https://" in result.stderr


def test_a_cell_goes_on_from_its_checkpoint_with_the_same_result(tmp_path):
    few = replace(SIZES[Preset.SMOKE], settings=(Setting(MADE_UP, 10, 15, 10),), methods=("maml",))

    def compute(folder):
        settings = Settings(Preset.SMOKE, ResultStore(tmp_path / folder), None, torch.device("cpu"))
        _, cell = benchmark.cells(settings, few)
        return cell.compute()

    whole, again = compute("one"), compute("one")  # the second finds its training finished
    assert again["training"]["updates"] == few.updates
    for mode in benchmark.MODES:
        assert again[mode] == whole[mode] == compute("other")[mode]


def test_presets_cover_the_tables():
    paper = SIZES[Preset.PAPER]
    names = [setting.name for setting in paper.settings]
    assert len(set(names)) == len(SOURCES) * 2 * 2
    assert {(s.shots, s.validation) for s in paper.settings} == {(10, 15), (20, 30)}
    assert all(s.steps % size.every == 0 for size in SIZES.values() for s in size.settings)
    assert set(SIZES[Preset.QUICK].methods) == set(methods.LABELS)
    assert benchmark.resolve(Preset.PAPER, None) == paper
    assert benchmark.resolve(Preset.SMOKE, None).settings[0].data == MADE_UP
    assert "2000 meta-updates (the paper: 5000)" in benchmark.head(paper)
    assert "made up" not in benchmark.head(paper)


def test_the_published_tables():
    assert published.ratings_column("jester-1", 20, 50)["maml"] == "0.036±0.000"
    assert published.ratings_column("movielens-1m", 10, 100)["reptile"] == "0.408±0.011"
    assert published.ratings_column("movielens-small-2016", 10, 50)["a-maml"] == "0.053±0.005"
    assert published.ratings_column(MADE_UP, 10, 50) == {}
    for table in published.TABLES.values():
        assert len(table) == 6
        for column in table.values():
            assert min(column, key=lambda name: float(column[name].split("±")[0])) == "a-maml"


def test_tasks_that_diverged_are_counted_apart():
    assert benchmark.spread([1.0, 3.0]) == "2.000 ± 1.000"
    assert benchmark.spread([1.0, math.nan, 3.0]) == "2.000 ± 1.000 (1 diverged)"
    assert benchmark.spread([math.inf]) == "unstable"


def test_the_tab_separated_form(tmp_path):
    path = tmp_path / SOURCES["movielens-100k"].file
    path.write_bytes(gzip.compress(b"196\t242\t3\t881250949\n186\t302\t1\t891717742\n"))
    table = ratings.read("movielens-100k", tmp_path)
    assert (table.user.tolist(), table.item.tolist()) == ([196, 186], [242, 302])
    assert table.rating.tolist() == [3.0, 1.0]
    result = run(check_data.app, "--data", str(tmp_path))
    assert result.exit_code == 1
    assert f"{path.name}, NOT as expected" in result.stdout
    assert "users, items and ratings: 2, 2, 2, expected 943, 1,682, 100,000" in result.stdout
    assert "its unpacked content has the SHA-256 sum" in result.stdout


def test_absent_data_are_said_with_their_origin_and_are_no_error(tmp_path):
    result = run(check_data.app, "--data", str(tmp_path))
    assert result.exit_code == 0
    for source in SOURCES.values():
        assert f"{source.file}, not there" in result.stdout
        assert source.origin in result.stdout


@pytest.mark.parametrize("name", list(SOURCES))
def test_a_broken_file_is_no_traceback(name, tmp_path):
    (tmp_path / SOURCES[name].file).write_bytes(b"no such format")
    finding = check_data.check(name, tmp_path)
    assert finding.present
    assert not finding.same_file
    assert "cannot be read" in finding.wrong[0]


def test_what_is_wrong_with_a_table_is_said():
    expected = replace(
        EXPECTED["movielens-1m"], counts=(2, 2, 3), scores=(1.0, 5.0), fewest=1, tasks=(0, 0),
        spread=(2, 1),
    )  # fmt: skip
    columns = (np.array([1, 1, 2]), np.array([4, 5, 4]), np.array([1.0, 5.0, 1.0]))
    assert check_data.compare(Table(*columns), expected) == []
    twice = Table(columns[0], np.array([4, 4, 5]), columns[2])
    assert check_data.compare(twice, expected) == [
        "different pairs of user and item: 2, expected 3"
    ]


@pytest.mark.parametrize("name", list(SOURCES))
def test_the_real_files_are_as_expected(name):
    finding = check_data.check(name, command.default_data())
    if not finding.present:
        pytest.skip(f"{SOURCES[name].file} is not in the data folder")
    assert finding.wrong == ()
