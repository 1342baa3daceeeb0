"""The tolerance benchmark: its truth against an oracle, its search, and its report."""

from __future__ import annotations

import math

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import __main__ as cli
from benchmarks.harness import strict_json
from benchmarks.harness.registry import Preset
from benchmarks.tolerance import measure, problems, report
from benchmarks.tolerance.problems import FAMILIES, OTHERS, SIZES
from odeopt.testing.problems import relative_error

SMALL = SIZES[Preset.SMOKE]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tolerance")
    arguments = ["tolerance", "--preset", "smoke", "--results", str(folder)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    return folder, strict_json.loads((folder / "results.json").read_bytes())["cells"]


def test_true_gradient_of_a_quadratic_is_autograd_through_its_flow():
    problem = problems.draw("quadratic", 0, SMALL)
    assert problem.quadratic is not None
    training = problem.training
    start = training.params.clone().requires_grad_()
    end = problem.quadratic.flow(start, problem.horizon)
    training.loss(end, training.validation).backward()
    assert relative_error(problem.truth()[0], start.grad) < 1e-12


@pytest.mark.parametrize("family", FAMILIES + OTHERS)
def test_stiffness_is_within_the_range_and_the_gradient_finite(family):
    problem = problems.draw(family, 3, SMALL)
    low, high = SMALL.stiffness
    assert low <= problem.stiffness <= high
    training = problem.training
    value = training.loss(training.params, training.train)
    assert value.dtype == torch.float64
    assert value.isfinite()
    assert problem.horizon > 0


def test_radius_is_the_largest_eigenvalue():
    curvature = torch.tensor([0.5, -3.0, 1.0], dtype=torch.float64)
    params = {"u": torch.ones(3, dtype=torch.float64)}
    found = problems.radius(lambda p, c: 0.5 * (c * p["u"] ** 2).sum(), params, curvature)
    assert found == pytest.approx(3.0, rel=1e-6)


def test_search_meets_the_tolerance_and_a_tighter_one_costs_no_less():
    problem = problems.draw("quadratic", 0, SMALL)
    best = measure.search(problem, problem.truth()[0], (1e-1, 1e-3))
    assert 0 < best[1e-1]["cost"] <= best[1e-3]["cost"] < math.inf


def test_verdicts_count_a_failure_and_one_warm_miss():
    row = {"tol": 0.1, "failure": "", "cold_error": 0.05, "warm_errors": [0.05, 0.2]}
    assert report.met(row, "cold")
    assert not report.met(row, "warm")
    failed = {"tol": 0.1, "failure": "ToleranceError", "best": {"cost": 1}}
    assert not report.met(failed, "cold")
    assert report.ratios([failed], "cold") == [math.inf]


@pytest.mark.parametrize(("dear", "expected"), [(2, "**Met**"), (3, "**Not met**")])
def test_costs_are_to_be_kept_in_most_problems_of_each_tolerance(dear, expected):
    """Of twenty problems two may cost more; thirty more of another tolerance make no difference."""

    def row(tol, cost):
        costs = {"cold_cost": cost, "warm_cost": 1, "best": {"cost": 1}}
        errors = {"cold_error": tol / 2, "warm_errors": [tol / 2]}
        return {"tol": tol, "failure": "", **costs, **errors}

    first = [row(0.1, 4.0 if k < dear else 3.0) for k in range(20)]
    groups = [first, [row(0.01, 1.0) for _ in range(30)]]
    tolerance, cost, both, every, *warm = report.criteria(groups)
    assert cost.startswith(f"- {expected}: cold cost at most 3 times")
    assert both.startswith(f"- {expected}: the tolerance met at that cost")
    assert every.startswith("- **Not met**")
    assert f"{dear} of 50 cost more, the dearest 4.0 times" in every
    assert all(line.startswith("- **Met**") for line in (tolerance, *warm))


@pytest.mark.parametrize(("estimate", "expected"), [(0.49, False), (0.51, True), (2.1, False)])
def test_within_a_factor_of_two(estimate, expected):
    assert report.within_two({"estimate": estimate, "true": 1.0}) is expected


@pytest.mark.slow
def test_smoke_run_reports_both_parts(smoke):
    folder, cells = smoke
    assert len(cells) == SMALL.problems
    text = (folder / "report.md").read_text()
    assert "## from_tolerance" in text
    assert "## estimate_error" in text
    assert (folder / "estimates.png").is_file()
    for cell in cells.values():
        assert cell["reference_error"] < min(SMALL.tolerances) / 100
        for row in cell["choices"]:
            assert row["warm_cost"] <= row["cold_cost"]


def test_estimates_of_errors_that_the_reference_cannot_tell_are_left_out():
    rows = [
        {"label": "refused", "failure": "StabilityError"},
        {"label": "known", "failure": "", "true": 1e-6, "estimate": 1e-6, "trusted": True},
        {"label": "too small", "failure": "", "true": 9e-8, "estimate": 1e-6, "trusted": True},
        {"label": "rounding", "failure": "", "true": 1e-13, "estimate": 1e-6, "trusted": True},
    ]
    problem = {"family": "alpine", "seed": 0, "reference_error": 1e-8, "estimates": rows}
    kept = [row["label"] for row in report.known_estimates(problem)]
    assert kept == ["refused", "known"]
    exact = [row["label"] for row in report.known_estimates(problem | {"reference_error": 0.0})]
    assert exact == ["refused", "known", "too small"]
