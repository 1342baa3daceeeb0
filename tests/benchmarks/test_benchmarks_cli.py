"""The command `python -m benchmarks`."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import __main__ as cli
from benchmarks import catalogue
from benchmarks.harness.registry import Benchmark, Preset, Settings
from benchmarks.problems.data_files import MissingDataError, require

NAMES = [benchmark.name for benchmark in catalogue.BENCHMARKS]


@pytest.fixture
def runs(monkeypatch):
    """Registers two benchmarks and returns the settings that the first was run with."""
    seen: list[Settings] = []
    for name, run in (("a_first_report", seen.append), ("a_needy_report", needs_data)):
        module = ModuleType(name)
        module.run = run
        monkeypatch.setitem(sys.modules, name, module)
    entries = (
        Benchmark("first", "Does one thing.", "a_first_report"),
        Benchmark("needy", "Needs data.", "a_needy_report"),
    )
    monkeypatch.setattr(catalogue, "BENCHMARKS", entries)
    return seen


def needs_data(settings):
    require(settings.data, "ratings.npz", "Get it from its authors.")


def call(*arguments):
    return CliRunner().invoke(cli.app, arguments)


def test_without_a_name_the_benchmarks_are_listed(runs):
    result = call()
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["first  Does one thing.", "needy  Needs data."]
    assert runs == []


def test_an_empty_catalogue_says_so(monkeypatch):
    monkeypatch.setattr(catalogue, "BENCHMARKS", ())
    assert "no benchmarks are registered" in call().stdout


def test_an_unknown_name_lists_what_is_there(runs):
    result = call("frist")
    assert result.exit_code == 2
    expected = "unknown benchmark 'frist' (did you mean 'first'?); expected one of first, needy."
    assert expected in result.stderr
    assert runs == []


def test_defaults(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("ODEOPT_DATA", str(tmp_path))
    assert call("first").exit_code == 0
    (settings,) = runs
    assert settings.preset is Preset.QUICK
    assert settings.store.directory.parts == ("results", "first")
    assert settings.data == tmp_path
    assert settings.device == torch.device("cpu")


def test_options(runs, tmp_path):
    options = ["--preset", "paper", "--results", str(tmp_path / "r"), "--data", str(tmp_path)]
    assert call("first", *options).exit_code == 0
    (settings,) = runs
    assert settings.preset is Preset.PAPER
    assert settings.store.directory == tmp_path / "r"
    assert settings.data == tmp_path


@pytest.mark.parametrize("options", [("--preset", "huge"), ("--device", "tpu")])
def test_wrong_choices_are_refused(runs, options):
    assert call("first", *options).exit_code == 2
    assert runs == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_said_before_the_run(runs):
    result = call("first", "--device", "cuda")
    assert result.exit_code == 2
    assert "no CUDA device" in result.stderr
    assert runs == []


def test_missing_data_is_a_message_and_no_traceback(runs, tmp_path):
    result = call("needy", "--data", str(tmp_path))
    assert result.exit_code == 1
    assert "ratings.npz" in result.stderr
    assert "Get it from its authors." in result.stderr


def test_without_a_data_folder_the_message_says_how_to_name_one():
    with pytest.raises(MissingDataError, match="ODEOPT_DATA"):
        require(None, "x.npz", "From somewhere.")


def test_an_empty_variable_is_no_data_folder(monkeypatch):
    monkeypatch.setenv("ODEOPT_DATA", "")
    found = cli.default_data()
    assert found is None or found.is_dir()


def test_the_real_catalogue():
    assert "accuracy-vs-checkpoints" in NAMES
    assert len(set(NAMES)) == len(NAMES)
    for benchmark in catalogue.BENCHMARKS:
        assert bool(benchmark.module) is not bool(benchmark.parts)


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_refuses_cells_that_it_does_not_have(name, tmp_path):
    options = ["--preset", "smoke", "--results", str(tmp_path / "r"), "--data", str(tmp_path)]
    result = call(name, *options, "--only", "no such cell")
    assert result.exit_code == 2
    assert result.stderr.startswith("--only: unknown cell 'no such cell'; expected one of '")
    assert result.stdout == ""
    assert not any((tmp_path / "r").glob("*.*"))


def test_results_that_cannot_be_written_are_one_line(runs, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        result = call("first", "--results", str(folder))
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"results cannot be written to {folder}: ")
        assert line.endswith("Give another folder with --results.")
    monkeypatch.setattr(cli.os, "access", lambda path, mode: mode == cli.os.R_OK)
    assert "may not be written to" in call("first", "--results", str(tmp_path)).stderr
    assert runs == []


def full(settings):
    raise OSError(28, "No space left on device", str(settings.store.directory / "cells" / "a.json"))


def broken(settings):
    raise FileNotFoundError(2, "No such file", "elsewhere")


def test_a_disk_that_is_full_is_one_line_and_other_errors_are_not_hidden(
    runs, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys.modules["a_first_report"], "run", full)
    result = call("first", "--results", str(tmp_path))
    assert result.exit_code == 1
    assert "No space left" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    monkeypatch.setattr(sys.modules["a_first_report"], "run", broken)
    assert isinstance(call("first", "--results", str(tmp_path)).exception, FileNotFoundError)
