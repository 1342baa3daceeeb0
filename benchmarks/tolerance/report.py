"""The report of the benchmark."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from benchmarks.harness import markdown, outline
from benchmarks.harness.plots import Labels, Series, Slope, loglog
from benchmarks.harness.registry import Settings
from benchmarks.tolerance import measure
from benchmarks.tolerance.criteria import LIMITS, Rows, criteria, met, ratios, verdict
from benchmarks.tolerance.sizes import LONG, SIZES, Sizes

NAME = "tolerance"
REVISION = 12
"""Raised when what a cell computes changes, so that stored cells are computed anew."""

RESOLVED, ROUNDING = 10.0, 1e-12
"""A true error is known if it is so many times that of the reference, and above this."""

DRAWN = 10.0
"""Larger errors and estimates are drawn as this."""


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plot and `results.json`."""
    sizes = SIZES[settings.preset]
    chosen = measure.cells(sizes)
    done = outline.compute(settings, NAME, REVISION, sizes, chosen)
    problems = list(done.cells.values())
    found = [row for problem in problems for row in known_estimates(problem)]
    _scatter(settings, [row for row in found if not row["failure"]])
    left_out = sum(len(problem["estimates"]) for problem in problems) - len(found)
    sections = [head(sizes, problems), choices(problems, sizes), estimates(found, left_out)]
    outline.write(settings, "Tolerances and error estimates", done, sections)


def flatten(problems: Rows, part: str) -> list[dict[str, Any]]:
    """The rows of a part of all problems, each with its family and seed."""
    return [
        {"family": problem["family"], "seed": problem["seed"], **row}
        for problem in problems
        for row in problem[part]
    ]


def known_estimates(problem: dict[str, Any]) -> list[dict[str, Any]]:
    """Its estimates, without those whose true errors the reference is too inaccurate to tell."""
    least = max(RESOLVED * problem["reference_error"], ROUNDING)
    rows = flatten([problem], "estimates")
    return [row for row in rows if row["failure"] or row["true"] >= least]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that a share of all does not exceed; NaN without any."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def choices(problems: Rows, sizes: Sizes) -> str:
    """Part 1: the tables by tolerance and family, the criteria and the worst cases."""
    rows = flatten(problems, "choices")
    groups = {f"{tol:g}": [r for r in rows if r["tol"] == tol] for tol in sizes.tolerances}
    families = {name: [r for r in rows if r["family"] == name] for name in sizes.families}
    headers = ["", "met cold", "met warm"]
    for when, limit in LIMITS.items():
        headers += [f"{when} cost, {what}" for what in ("median", "90 %", f"within {limit:g}")]
    tables = [
        markdown.table([first, *headers[1:]], [_row(name, part) for name, part in group.items()])
        for first, group in (("tolerance", groups), ("family", families))
    ]
    return "\n".join(
        [
            "## from_tolerance",
            "",
            *tables,
            *criteria(list(groups.values())),
            "",
            _best(groups),
            "",
            _worst(rows),
        ]
    )


def _row(name: str, rows: Rows) -> list[markdown.Entry]:
    found: list[markdown.Entry] = [name]
    found += [f"{sum(met(r, when) for r in rows)} of {len(rows)}" for when in LIMITS]
    for when, limit in LIMITS.items():
        costs = ratios(rows, when)
        found += [f"{quantile(costs, share):.2f}" for share in (0.5, 0.9)]
        found.append(f"{sum(cost <= limit for cost in costs)} of {len(costs)}")
    return found


def _best(groups: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["Methods that from_tolerance settled on, and those of the best fixed settings:", ""]
    for name, rows in groups.items():
        ours = Counter(row.get("chosen", "failed") for row in rows)
        best = Counter(r["best"]["setting"].split()[0] if r["best"] else "none" for r in rows)
        lines.append(f"- tolerance {name}: {_listed(ours)}; best {_listed(best)}")
    return "\n".join(lines)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{method} {count}" for method, count in counts.most_common())


def _worst(rows: Rows) -> str:
    failed = [row for row in rows if row["failure"]]
    lines = [f"- {_name(row)}: {row['failure']}" for row in failed]
    done = [row for row in rows if not row["failure"]]
    for when, limit in LIMITS.items():
        for row in done:
            if not met(row, when):
                error = row["cold_error"] if when == "cold" else max(row["warm_errors"])
                lines.append(f"- {_name(row)}: {when} error {error / row['tol']:.2f} of tol")
        known = [row for row in done if row["best"]]
        costs = ratios(known, when)
        beyond = sum(cost > limit for cost in costs)
        dearest = sorted(zip(costs, known, strict=True), key=itemgetter(0), reverse=True)
        for ratio, row in dearest[: max(beyond, 3)]:
            lines.append(f"- {_name(row)}: {when} cost {ratio:.1f} times {row['best']['setting']}")
    return "\n".join(["Failures, tolerances that were missed, and the dearest cases:", "", *lines])


def _name(row: dict[str, Any]) -> str:
    return f"{row['family']}, seed {row['seed']}, tolerance {row['tol']:g}"


def ratio_of(row: dict[str, Any]) -> float:
    """Estimate over true error."""
    return row["estimate"] / row["true"] if row["true"] > 0 else math.inf


def within_two(row: dict[str, Any]) -> bool:
    """Whether an estimate is within a factor of two."""
    return 0.5 <= ratio_of(row) <= 2


def estimates(rows: Rows, left_out: int) -> str:
    """Part 2: a table by configuration, the criterion and the worst cases."""
    labels = dict.fromkeys(row["label"] for row in rows)
    table = [_estimate_row("all", rows)]
    table += [_estimate_row(label, [r for r in rows if r["label"] == label]) for label in labels]
    headers = ["configuration", "refused", "flagged", "trusted", "within a factor of 2"]
    headers += ["5 %", "median", "95 %"]
    trusted = [row for row in rows if not row["failure"] and row["trusted"]]
    good = sum(map(within_two, trusted))
    worst = sorted(trusted, key=_distance, reverse=True)[:5]
    lines = [
        f"- {row['family']}, seed {row['seed']}, {row['label']}: estimate {row['estimate']:.2e},"
        f" true error {row['true']:.2e}"
        for row in worst
    ]
    return "\n".join([
        "## estimate_error", "", markdown.table(headers, table),
        f"- {verdict(good == len(trusted))}: within a factor of two of the true error wherever it"
        f" is not flagged: {good} of {len(trusted)}.", "",
        f"Left out are {left_out} whose true errors are less than {RESOLVED:g} times that of the"
        " reference, so that nobody knows them.", "",
        "The last three columns are quantiles of estimate / true error among the trusted. The"
        " trusted estimates that were furthest off:", "", *lines, "",
        f"In the plot errors and estimates beyond {DRAWN:g} are drawn there.", "",
        "![estimates against true errors](estimates.png)",
    ])  # fmt: skip


def _distance(row: dict[str, Any]) -> float:
    ratio = ratio_of(row)
    return abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf


def _estimate_row(label: str, rows: Rows) -> list[markdown.Entry]:
    done = [row for row in rows if not row["failure"]]
    trusted = [row for row in done if row["trusted"]]
    found = [ratio_of(row) for row in trusted]
    share = f"{sum(map(within_two, trusted)) / len(trusted):.1%}" if trusted else "-"
    quantiles = [f"{quantile(found, q):.2f}" if found else "-" for q in (0.05, 0.5, 0.95)]
    flagged = len(done) - len(trusted)
    return [label, len(rows) - len(done), flagged, len(trusted), share, *quantiles]


def _scatter(settings: Settings, rows: Rows) -> None:
    """Estimates against true errors; both are drawn at `DRAWN` where they are larger."""
    series: list[Series] = []
    for name, trusted in (("flagged", False), ("trusted", True)):
        part = [row for row in rows if row["trusted"] is trusted]
        true, estimate = ([min(row[key], DRAWN) for row in part] for key in ("true", "estimate"))
        series.append(Series(name, true, estimate, ""))
    least = min((row["true"] for row in rows), default=ROUNDING)
    line = Slope("the true error", 1.0, (least, least), DRAWN)
    labels = Labels("error estimates", "true relative error", "estimate")
    loglog(settings.store.directory / "estimates.png", labels, series, [line])


def head(sizes: Sizes, problems: Rows) -> str:
    """What is measured, in words."""
    own = max(problem["reference_error"] for problem in problems)
    low, high = sizes.stiffness
    return f"""{len(problems)} random problems of {len(sizes.families)} families
({", ".join(sizes.families)}), one task each, float64. T is drawn so that rho T, with rho the
spectral radius of the Hessian at the start, is log-uniform in [{low:g}, {high:g}]. The true
gradient is that of RK4 with the exact adjoint (its own error, from half as many steps, is at most
{own:.1e})
and, of quadratics, the closed form.

Costs are gradient evaluations plus Hessian-vector products. Cold is the first call of a fresh
optimiser, estimates and the settings that it gave up included; warm is the mean of the last
{sizes.counted} of {sizes.calls} further calls, and a tolerance is met warm if all of these
{sizes.calls} meet it. Both are in units of the cheapest of Euler, ModifiedEuler, RK4, Chebyshev2
and Chebyshev3 (numbers of steps a factor sqrt(2) apart) and StabilizedRK (tolerances a factor
sqrt(10) apart) whose true error meets the tolerance, without any estimate; some of these meet it by
luck, with steps that are too long to be stable.
Above a rho T of {LONG:g} kernels of networks are compiled; of StabilizedRK that evaluates the
gradients at the stages of a pull again, which counts.
A failed call counts as a tolerance that was missed, at an infinite cost."""
