"""What "Meta-Learning with Adjoint Methods" and the papers beside it print."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A printed mean ± standard deviation, or ± half the width of an interval."""

    mean: float
    std: float

    def __str__(self) -> str:
        return f"{self.mean:g} ± {self.std:g}"


Column = tuple[Entry, ...]


def _texts(printed: str) -> list[tuple[str, ...]]:
    """The columns of a printed table."""
    return list(zip(*(line.split() for line in printed.strip().splitlines()), strict=True))


def _columns(printed: str) -> list[Column]:
    return [
        tuple(Entry(*map(float, entry.split("±"))) for entry in column)
        for column in _texts(printed)
    ]


# Tables 4 and 5 (appendix A): relative L2 errors of a gradient, mean and standard deviation over 20
# random initial states. N states on [0, T] are N - 1 steps.

_AUTODIFF = """
6.24e-7±8.87e-8 3.34e-4±1.06e-7 2.51e-3±9.23e-4 4.74e-1±4.13e-3
2.01e-7±1.08e-7 7.34e-5±1.61e-7 5.82e-4±1.89e-4 7.33e-2±4.91e-4
1.48e-7±1.20e-7 1.08e-5±2.49e-7 8.90e-5±2.71e-5 9.28e-3±5.93e-5
6.75e-7±2.00e-7 2.64e-6±2.59e-7 2.19e-5±6.69e-6 2.16e-3±1.38e-5
7.32e-7±7.61e-7 9.18e-7±4.13e-7 5.54e-6±1.92e-6 5.23e-4±3.76e-6
7.69e-7±1.13e-6 1.12e-6±6.59e-7 1.16e-6±1.02e-6 8.14e-5±1.27e-6
7.09e-7±7.82e-7 4.55e-6±1.94e-6 1.51e-6±1.51e-6 2.01e-5±1.34e-6
"""
_ADJOINT = """
1.02e-6±9.21e-7 2.67e-4±1.79e-4 2.48e-3±7.28e-8 2.92e-1±1.41e-7
6.34e-7±7.28e-7 6.17e-5±4.07e-5 5.04e-4±1.64e-7 4.77e-2±2.00e-7
6.88e-7±7.49e-7 9.35e-6±5.94e-6 7.17e-5±2.14e-7 6.10e-3±2.51e-7
5.87e-7±5.31e-7 2.17e-6±1.33e-6 1.73e-5±3.40e-7 1.42e-3±2.88e-7
4.49e-7±3.62e-7 6.73e-7±4.93e-7 4.34e-6±4.82e-7 3.44e-4±5.31e-7
3.01e-7±1.99e-7 7.36e-7±7.44e-7 9.91e-7±5.42e-7 5.39e-5±6.10e-7
1.45e-7±8.58e-8 6.94e-7±4.73e-7 9.96e-7±7.64e-7 1.32e-5±1.05e-6
"""
TABLE_4_STATES = (10, 20, 50, 100, 200, 500, 1000)
TABLE_4: dict[float, dict[str, Column]] = {
    t1: {"autodiff": autodiff, "adjoint": adjoint}
    for t1, autodiff, adjoint in zip(
        (0.1, 0.5, 1.0, 2.0), _columns(_AUTODIFF), _columns(_ADJOINT), strict=True
    )
}
"""By T and the printed column name; each column follows `TABLE_4_STATES`."""

TABLE_4_ADJOINT = {0.1: "autodiff", 0.5: "autodiff", 1.0: "adjoint", 2.0: "adjoint"}
"""By T, the printed name of the column that holds the adjoint's errors.

The equation is linear, so the adjoint's relative error does not depend on y0 and its standard
deviation is that of rounding alone. That column is headed "Adjoint" at T = 1 and 2 but
"Autodiff" at T = 0.1 and 0.5, where the two must have been swapped; it agrees with the midpoint
rule of N - 1 steps, down to the rounding of single precision. (At T = 0.1 rounding blurs the
difference from N = 200 on.)
"""

TABLE_5_STATES = (10, 20, 50, 100, 200, 500)
TABLE_5_REFERENCE_STATES = 1000
"""The errors are against the same method's gradient with this many states."""

_FIVE = """
7.62e-4±2.04e-4 4.82e-3±9.07e-4 1.17e-2±2.17e-3
3.55e-4±9.49e-5 2.26e-3±4.21e-4 5.46e-3±1.01e-3
1.33e-4±3.55e-5 8.63e-4±1.61e-4 2.09e-3±3.85e-4
6.24e-5±1.67e-5 4.19e-4±7.79e-5 1.03e-3±1.88e-4
2.76e-5±7.34e-6 2.01e-4±3.74e-5 4.99e-4±9.16e-5
6.87e-6±1.83e-6 7.16e-5±1.33e-5 1.87e-4±3.42e-5
"""
TABLE_5: dict[float, Column] = dict(zip((0.1, 0.3, 0.5), _columns(_FIVE), strict=True))
"""By T, CosMixture; each column follows `TABLE_5_STATES`."""

FIGURE_2: dict[tuple[str, int], dict[str, float]] = {
    ("cosmixture", 50): {
        "a-maml": 0.15, "maml": 0.35, "maml-1": 0.39, "imaml-gd": 0.42, "fomaml": 0.49,
        "reptile": 0.52,
    },
    ("cosmixture", 100): {
        "a-maml": 0.285, "fomaml": 0.36, "imaml-gd": 0.51, "maml-1": 0.54, "reptile": 0.58,
        "maml": 0.605,
    },
    ("alpine", 50): {
        "a-maml": 0.18, "imaml-gd": 0.39, "maml": 0.39, "maml-1": 0.43, "fomaml": 0.52,
        "reptile": 0.52,
    },
    ("alpine", 100): {
        "a-maml": 0.355, "fomaml": 0.46, "imaml-gd": 0.54, "maml-1": 0.57, "maml": 0.58,
        "reptile": 0.61,
    },
}  # fmt: skip
"""nRMSE at about 1000 epochs by family, shots and method, read off the slides (about ±0.01)."""

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


def _by_method(printed: str) -> dict[tuple[str, int], dict[str, str]]:
    return {
        key: dict(zip(_METHODS, column, strict=True))
        for key, column in zip(_COLUMNS, _texts(printed), strict=True)
    }


TABLES = {50: _by_method(_TABLE_1), 100: _by_method(_TABLE_2)}
"""By steps of gradient descent, data set and shots, and method."""

NUMBERS = {50: "Table 1", 100: "Table 2"}


def ratings_column(data: str, shots: int, steps: int) -> dict[str, str]:
    """What is printed for a data set, by method; empty where nothing is."""
    return TABLES.get(steps, {}).get((_SAME.get(data, data), shots), {})


_ROWS = {
    "maml": ((95.8, 0.3), (48.70, 1.84)),
    "fomaml": ((89.4, 0.5), (48.07, 1.75)),
    "reptile": ((89.43, 0.14), (49.97, 0.32)),
    "imaml-gd": ((94.46, 0.42), (48.96, 1.84)),
    "imaml-hf": ((96.18, 0.36), (49.30, 1.88)),
    "a-maml T=0.5": ((96.36, 0.39), (49.43, 1.64)),
    "a-maml T=1": ((96.79, 0.34), (49.47, 1.77)),
}
TABLE_3: dict[tuple[str, int, int], dict[str, Entry]] = {
    ("omniglot", 20, 1): {name: Entry(*row) for name, (row, _) in _ROWS.items()},
    ("mini-imagenet", 5, 1): {name: Entry(*row) for name, (_, row) in _ROWS.items()}
    | {"comln": Entry(53.01, 0.62)},  # not in Table 3; Conv-4, 1000 tasks
}
"""Accuracies in percent by data set, ways and shots, and contender; who measured them, `ORIGINS`
says."""

ORIGINS = (
    "Table 3 of the A-MAML paper measures A-MAML only. Its rows of MAML, FOMAML, Reptile, iMAML-GD"
    " and iMAML-HF are those of iMAML's Table 2 to the last digit, which in turn quotes the first"
    " three from MAML's and Reptile's papers; Reptile's mini-ImageNet number is its transductive"
    " one. No code for this experiment was released with the paper, and its learning rate, steps"
    " and number of updates for A-MAML are not stated. COMLN's number is from its own paper."
)


def pictures_column(data: str, ways: int, shots: int) -> dict[str, Entry]:
    """What is printed for a setting, by contender; empty where nothing is."""
    return TABLE_3.get((data, ways, shots), {})


def beside(contender: str, printed: dict[str, Entry]) -> str:
    """What stands beside a contender; A-MAML without a horizon of its own has the paper's 0.5."""
    name = "a-maml T=0.5" if contender == "a-maml" else contender
    return str(printed[name]) if name in printed else ""
