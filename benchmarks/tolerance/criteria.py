"""Whether tolerances were met, and at what costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

LIMITS = {"cold": 3.0, "warm": 1.5}
SHARES = {"cold": 0.9, "warm": 0.95}
"""The shares of the problems in which these costs are to be kept."""

ACCURATE = 0.98
"""The share of the problems in which the tolerance is to be met."""

Rows = Sequence[dict[str, Any]]


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
        lines.append(_tolerances(groups, when))
        lines += _costs([rows for rows in known if rows], when, limit)
    return lines


def _tolerances(groups: Sequence[Rows], when: str) -> str:
    shares = [_share(rows, lambda row: met(row, when)) for rows in groups]
    return (
        f"- {_most(shares, ACCURATE)}: within the tolerance {when}, {_at_each(shares, ACCURATE)}."
    )


def _costs(groups: Sequence[Rows], when: str, limit: float) -> list[str]:
    def within(row: dict[str, Any]) -> bool:
        return ratios([row], when)[0] <= limit

    if not groups:
        return []
    shares = [_share(rows, within) for rows in groups]
    both = [_share(rows, lambda row: met(row, when) and within(row)) for rows in groups]
    every = [cost for rows in groups for cost in ratios(rows, when)]
    beyond = sum(cost > limit for cost in every)
    least, what = SHARES[when], f"{when} cost at most {limit:g} times the best fixed setting's"
    return [
        f"- {_most(shares, least)}: {what}, {_at_each(shares, least)}.",
        f"- {_most(both, least)}: the tolerance met at that cost, {_at_each(both, least)}.",
        f"- {verdict(beyond == 0)}: {what} in all problems: {beyond} of {len(every)} cost more, the"
        f" dearest {max(every):.1f} times; the median is {median(every):.2f} times.",
    ]


def _share(rows: Rows, kept: Callable[[dict[str, Any]], bool]) -> float:
    return sum(map(kept, rows)) / len(rows)


def _most(shares: Sequence[float], least: float) -> str:
    return verdict(min(shares) >= least)


def _at_each(shares: Sequence[float], least: float) -> str:
    listed = ", ".join(f"{share:.1%}" for share in shares)
    return f"in {least:.0%} of the problems or more at each tolerance: {listed}"


def verdict(yes: bool) -> str:
    """In words."""
    return "**Met**" if yes else "**Not met**"
