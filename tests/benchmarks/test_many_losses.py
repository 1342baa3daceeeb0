"""The benchmark `many-losses`: the arithmetic of its claims, and its report."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import __main__ as cli
from benchmarks import many_losses
from benchmarks.harness import processes
from benchmarks.many_losses import BATCHED, MANY, ONE, Point, Problem


def cell(products, parameters=1000, losses=5):
    """A backward sweep of one loss takes 2 s."""
    many = [3.0 + 2.0 * (losses - 1) * own for own in products]
    ones = [1.0] * len(many)
    seconds = {"forward": ones, ONE: [3.0] * len(many), MANY: many, BATCHED: ones}
    return {"outcome": "", "losses": losses, "parameters": parameters, "seconds": seconds}


def test_a_further_loss_is_counted_in_backward_sweeps_of_one():
    assert many_losses.products(cell([0.1, 0.3, 0.2])) == pytest.approx(0.2)
    assert many_losses.over_batched(cell([0.0] * 3)) == 3.0


@pytest.mark.parametrize(("small", "large", "expected"), [
    (0.39, 1.09, [True, True]), (0.41, 1.09, [False, True]), (0.39, 1.11, [True, False]),
])  # fmt: skip
def test_claims_are_of_the_worst_cell(small, large, expected):
    cells = {
        "a": cell([0.1]),
        "b": cell([small]),
        "c": cell([0.5], 20000),
        "d": cell([large], 20000),
    }
    claims = many_losses.evaluate(cells | {"e": {"outcome": "Timeout"}})
    assert [one.met for one in claims] == expected
    assert claims[0].numbers.endswith("(b)")
    assert [one.met for one in many_losses.evaluate({})] == [None, None]


def test_both_ways_give_one_gradient():
    problem = Problem(Point(5, 6, 3, 4), torch.float64)
    each = problem.many()
    assert each.shape == (4, problem.size)
    torch.testing.assert_close(each, problem.batched())
    torch.testing.assert_close(each.mean(0), problem.one())


def test_the_report_of_a_smoke_run(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "run", lambda function, *args, limit: function(*args))
    arguments = ["many-losses", "--preset", "smoke", "--results", str(tmp_path)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report.md").read_text()
    assert (
        "| more than 10000 parameters: a further loss costs at most 1.1 products a step | not"
        in text
    )
    assert "| 3x8 batch=5 steps=3 losses=4 | 241 |" in text
