"""What the suite shows, checked: the published tables and the accuracy on CosMixture."""

from __future__ import annotations

from math import floor, log10

import pytest
import torch

import odeopt
from benchmarks.accuracy_vs_checkpoints import cases, tables
from benchmarks.accuracy_vs_checkpoints.cases import cosmixture_case
from benchmarks.harness.registry import Preset, Settings
from benchmarks.harness.store import ResultStore
from benchmarks.problems import published

DETERMINISTIC = [
    (t1, states, published.TABLE_4[t1][column][place].mean)
    for t1, column in published.TABLE_4_ADJOINT.items()
    for place, states in enumerate(published.TABLE_4_STATES[:5])
    if published.TABLE_4[t1][column][place].mean >= 1e-5
]


@pytest.mark.parametrize(("t1", "states", "printed"), DETERMINISTIC)
def test_the_deterministic_column_of_table_4_is_reproduced(t1, states, printed, device):
    found = tables._errors(t1, states, torch.float64, device)["midpoint"][0]
    printed_digits = 0.005 * 10 ** floor(log10(printed))  # three digits are printed
    assert found == pytest.approx(printed, rel=0.01, abs=0.01 * printed + printed_digits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("states", "method", "factor"),
    [
        (10, odeopt.ModifiedEuler(), 4),
        (100, odeopt.ModifiedEuler(), 40),
        (10, odeopt.RK4(), 1000),
        (100, odeopt.RK4(), 1000),
    ],
    ids=["modified Euler 10", "modified Euler 100", "RK4 10", "RK4 100"],
)
def test_table_5_is_beaten_by_the_order_of_the_method(states, method, factor, device):
    begin = cases.Starts(cosmixture_case(), range(20), device)
    target = begin.flow(0.5)[0]
    opt = cases.flow_optimizer(begin.case, method, odeopt.Density(states))
    found = begin.gradients(opt, odeopt.TimeGrid.uniform(0.5, states))
    printed = published.TABLE_5[0.5][published.TABLE_5_STATES.index(states)].mean
    assert cases.errors(found.gradients, target).mean().item() < printed / factor


@pytest.fixture(scope="module")
def twenty_starts():
    """Errors at T = 5 with 32 kept states: `errors(method, nodes) -> [20]`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    begin = cases.Starts(cosmixture_case(), range(20), torch.device("cpu"))
    target, own = begin.flow(5.0)
    assert own < 1e-6

    def errors(method, nodes):
        opt = cases.flow_optimizer(begin.case, method, nodes)
        found = begin.gradients(opt, odeopt.TimeGrid.uniform(5.0, 512))
        return cases.errors(found.gradients, target)

    yield errors
    torch.set_default_dtype(before)


@pytest.mark.slow
def test_rk4_with_hermite_states_on_cosmixture(twenty_starts):
    error = twenty_starts(odeopt.RK4(), odeopt.Density(32))
    assert error.median() <= 3e-5
    assert error.max() <= 1e-4


@pytest.mark.slow
def test_graded_nodes_make_modified_euler_better(twenty_starts):
    uniform = twenty_starts(odeopt.ModifiedEuler(), odeopt.Density(32))
    graded = twenty_starts(odeopt.ModifiedEuler(), odeopt.Graded(32))
    assert (uniform / graded).median() >= 1.5


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    from benchmarks.accuracy_vs_checkpoints import report

    settings = Settings(Preset.SMOKE, ResultStore(tmp_path), None, torch.device("cpu"))
    cells = tables.cells_4(settings, report.SIZES[Preset.SMOKE])
    done: list[str] = []

    def only_table_4(settings, sizes):
        return [cell for cell in cells if not cell.key.endswith("N=20")]

    monkeypatch.setattr(report, "_cells", only_table_4)
    with pytest.raises(KeyError):  # the report wants cells that were never made
        report.run(settings)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").iterdir()}
    done = [p.name for p in stamps]
    with pytest.raises(KeyError):
        report.run(settings)
    assert done
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").iterdir()} == stamps
