"""Tables 1 and 2 of the paper, as printed: "nRMSE", mean and standard deviation over 100 tasks."""

from __future__ import annotations

_METHODS = ("a-maml", "imaml-gd", "maml", "fomaml", "reptile")
_COLUMNS = tuple(
    (data, shots) for data in ("jester-1", "movielens-100k", "movielens-1m") for shots in (10, 20)
)

_TABLE_1 = """
0.074±0.005 0.027±0.002 0.053±0.005 0.023±0.003 0.094±0.008 0.035±0.004
0.114±0.007 0.050±0.003 0.082±0.004 0.033±0.002 0.138±0.010 0.052±0.004
0.120±0.001 0.036±0.000 0.123±0.001 0.050±0.003 0.140±0.002 0.059±0.001
0.292±0.012 0.115±0.004 0.174±0.008 0.068±0.004 0.270±0.011 0.104±0.006
0.270±0.012 0.106±0.004 0.166±0.008 0.063±0.003 0.266±0.011 0.101±0.006
"""

_TABLE_2 = """
0.069±0.005 0.044±0.003 0.057±0.006 0.021±0.002 0.105±0.009 0.035±0.004
0.190±0.010 0.103±0.005 0.168±0.007 0.046±0.002 0.130±0.007 0.045±0.004
0.154±0.001 0.061±0.002 0.123±0.001 0.050±0.002 0.197±0.002 0.083±0.001
0.273±0.012 0.077±0.004 0.191±0.007 0.071±0.004 0.395±0.010 0.119±0.005
0.290±0.012 0.100±0.004 0.171±0.008 0.066±0.004 0.408±0.011 0.128±0.006
"""

_SAME = {"movielens-small-2016": "movielens-100k"}
"""Both readings of the paper's MovieLens-100K have its printed numbers beside them."""


def _parse(printed: str) -> dict[tuple[str, int], dict[str, str]]:
    rows = [line.split() for line in printed.strip().splitlines()]
    columns = zip(*rows, strict=True)
    return {
        key: dict(zip(_METHODS, column, strict=True))
        for key, column in zip(_COLUMNS, columns, strict=True)
    }


TABLES = {50: _parse(_TABLE_1), 100: _parse(_TABLE_2)}
"""By steps of gradient descent, data set and shots, and method."""

NUMBERS = {50: "Table 1", 100: "Table 2"}


def column(data: str, shots: int, steps: int) -> dict[str, str]:
    """What is printed for a data set, by method; empty where nothing is."""
    return TABLES.get(steps, {}).get((_SAME.get(data, data), shots), {})
