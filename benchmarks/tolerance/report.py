"""The report of the benchmark: whether tolerances were met, and at what costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from statistics import median
from typing import Any

from benchmarks.harness import markdown, outline
from benchmarks.harness.plots import Labels, Series, Slope, loglog
from benchmarks.harness.registry import Settings
from benchmarks.tolerance import measure
from benchmarks.tolerance.problems import LONG, SIZES, Sizes

NAME = "tolerance"
REVISION = 12
"""Raised when what a cell computes changes, so that stored cells are computed anew."""

RESOLVED, ROUNDING = 10.0, 1e-12
"""A true error is known if it is so many times that of the reference, and above this."""

DRAWN = 10.0
"""Larger errors and estimates are drawn as this."""

LIMITS = {"cold": 3.0, "warm": 1.5}
SHARES = {"cold": 0.9, "warm": 0.95}
"""The shares of the problems in which these costs are to be kept."""

ACCURATE = 0.98
"""The share of the problems in which the tolerance is to be met."""

Rows = Sequence[dict[str, Any]]


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plot and `results.json`."""
    sizes = SIZES[settings.preset]
    chosen = measure.cells(sizes)
    done = outline.compute(settings, NAME, REVISION, sizes, chosen)
    problems = list(done.cells.values())
    known = [row for problem in problems for row in known_estimates(problem)]
    _scatter(settings, [row for row in known if not row["failure"]])
    left_out = sum(len(problem["estimates"]) for problem in problems) - len(known)
    sections = [_head(sizes, problems), _choices(problems, sizes), _estimates(known, left_out)]
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


def met(row: dict[str, Any], when: str) -> bool:
    """Whether the tolerance was met: cold, or by every warm call."""
    if row["failure"]:
        return False
    errors = [row["cold_error"]] if when == "cold" else row["warm_errors"]
    return max(errors) <= row["tol"]


def ratios(rows: Rows, when: str) -> list[float]:
    """Costs in units of the best fixed setting's; infinity where from_tolerance failed."""
    known = [row for row in rows if row["best"]]
    return [
        math.inf if row["failure"] else row[f"{when}_cost"] / row["best"]["cost"] for row in known
    ]


def criteria(groups: Sequence[Rows]) -> list[str]:
    """Whether tolerances and limits of costs are kept in most problems, at each tolerance."""
    known = [[row for row in rows if row["best"]] for rows in groups]
    lines: list[str] = []
    for when, limit in LIMITS.items():
        lines.append(
            _most(groups, partial(met, when=when), ACCURATE, f"within the tolerance {when}")
        )
        lines += _costs([rows for rows in known if rows], when, limit)
    return lines


def _costs(groups: Sequence[Rows], when: str, limit: float) -> list[str]:
    def within(row: dict[str, Any]) -> bool:
        return ratios([row], when)[0] <= limit

    def both(row: dict[str, Any]) -> bool:
        return met(row, when) and within(row)

    if not groups:
        return []
    every = [cost for rows in groups for cost in ratios(rows, when)]
    beyond = sum(cost > limit for cost in every)
    least, what = SHARES[when], f"{when} cost at most {limit:g} times the best fixed setting's"
    return [
        _most(groups, within, least, what),
        _most(groups, both, least, "the tolerance met at that cost"),
        f"- {verdict(beyond == 0)}: {what} in all problems: {beyond} of {len(every)} cost more, the"
        f" dearest {max(every):.1f} times; the median is {median(every):.2f} times.",
    ]


def _most(
    groups: Sequence[Rows], kept: Callable[[dict[str, Any]], bool], least: float, what: str
) -> str:
    shares = [sum(map(kept, rows)) / len(rows) for rows in groups]
    listed = ", ".join(f"{share:.1%}" for share in shares)
    return (
        f"- {verdict(min(shares) >= least)}: {what}, in {least:.0%} of the problems or more at each"
        f" tolerance: {listed}."
    )


def verdict(yes: bool) -> str:
    """In words."""
    return "**Met**" if yes else "**Not met**"


def _quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that a share of all does not exceed; NaN without any."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def _choices(problems: Rows, sizes: Sizes) -> str:
    """Part 1: the tables by tolerance and family, the criteria and the worst cases."""
    rows = flatten(problems, "choices")
    groups = {f"{tol:g}": [r for r in rows if r["tol"] == tol] for tol in sizes.tolerances}
    families = {name: [r for r in rows if r["family"] == name] for name in sizes.families}
    headers = ["met cold", "met warm"]
    for when, limit in LIMITS.items():
        headers += [f"{when} cost, {what}" for what in ("median", "90 %", f"within {limit:g}")]
    tables = [
        markdown.table([first, *headers], [_row(name, part) for name, part in group.items()])
        for first, group in (("tolerance", groups), ("family", families))
    ]
    lines = ["## from_tolerance", "", *tables, *criteria(list(groups.values()))]
    return "\n".join([*lines, "", _best(groups), "", _worst(rows)])


def _row(name: str, rows: Rows) -> list[markdown.Entry]:
    entries: list[markdown.Entry] = [name]
    entries += [f"{sum(met(r, when) for r in rows)} of {len(rows)}" for when in LIMITS]
    for when, limit in LIMITS.items():
        costs = ratios(rows, when)
        entries += [f"{_quantile(costs, share):.2f}" for share in (0.5, 0.9)]
        entries.append(f"{sum(cost <= limit for cost in costs)} of {len(costs)}")
    return entries


def _best(groups: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["Methods that from_tolerance settled on, and those of the best fixed settings:", ""]
    for name, rows in groups.items():
        ours = Counter(row.get("chosen", "failed") for row in rows)
        best = Counter(r["best"]["setting"].split()[0] if r["best"] else "none" for r in rows)
        listed = (
            ", ".join(f"{method} {count}" for method, count in counts.most_common())
            for counts in (ours, best)
        )
        lines.append(f"- tolerance {name}: {'; best '.join(listed)}")
    return "\n".join(lines)


def _worst(rows: Rows) -> str:
    lines = ["Failures, tolerances that were missed, and the dearest cases:", ""]
    names = ["{family}, seed {seed}, tolerance {tol:g}".format_map(row) for row in rows]
    named = list(zip(names, rows, strict=True))
    lines += [f"- {name}: {row['failure']}" for name, row in named if row["failure"]]
    done = [(name, row) for name, row in named if not row["failure"]]
    for when, limit in LIMITS.items():
        for name, row in done:
            if not met(row, when):
                error = row["cold_error"] if when == "cold" else max(row["warm_errors"])
                lines.append(f"- {name}: {when} error {error / row['tol']:.2f} of tol")
        known = [(ratios([row], when)[0], name, row) for name, row in done if row["best"]]
        beyond = sum(cost > limit for cost, _, _ in known)
        dearest = sorted(known, key=itemgetter(0), reverse=True)
        for ratio, name, row in dearest[: max(beyond, 3)]:
            lines.append(f"- {name}: {when} cost {ratio:.1f} times {row['best']['setting']}")
    return "\n".join(lines)


def _ratio(row: dict[str, Any]) -> float:
    """Estimate over true error."""
    return row["estimate"] / row["true"] if row["true"] > 0 else math.inf


def within_two(row: dict[str, Any]) -> bool:
    """Whether an estimate is within a factor of two."""
    return 0.5 <= _ratio(row) <= 2


def _estimates(rows: Rows, left_out: int) -> str:
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
    """How far off an estimate is, by its logarithm."""
    ratio = _ratio(row)
    return abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf


def _estimate_row(label: str, rows: Rows) -> list[markdown.Entry]:
    done = [row for row in rows if not row["failure"]]
    trusted = [row for row in done if row["trusted"]]
    quotients = [_ratio(row) for row in trusted]
    share = f"{sum(map(within_two, trusted)) / len(trusted):.1%}" if trusted else "-"
    quantiles = [f"{_quantile(quotients, q):.2f}" if trusted else "-" for q in (0.05, 0.5, 0.95)]
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


def _head(sizes: Sizes, problems: Rows) -> str:
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
