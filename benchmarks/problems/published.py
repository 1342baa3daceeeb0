"""Tables 4 and 5 of "Meta-Learning with Adjoint Methods" (appendix A), as printed.

All entries are relative L2 errors of a gradient, mean and standard deviation over 20 random
initial states. N states on [0, T] are N - 1 steps.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A printed mean ± standard deviation."""

    mean: float
    std: float


Column = tuple[Entry, ...]

TABLE_4_STATES = (10, 20, 50, 100, 200, 500, 1000)

TABLE_4: dict[float, dict[str, Column]] = {
    0.1: {
        "autodiff": (
            Entry(6.24e-7, 8.87e-8),
            Entry(2.01e-7, 1.08e-7),
            Entry(1.48e-7, 1.20e-7),
            Entry(6.75e-7, 2.00e-7),
            Entry(7.32e-7, 7.61e-7),
            Entry(7.69e-7, 1.13e-6),
            Entry(7.09e-7, 7.82e-7),
        ),
        "adjoint": (
            Entry(1.02e-6, 9.21e-7),
            Entry(6.34e-7, 7.28e-7),
            Entry(6.88e-7, 7.49e-7),
            Entry(5.87e-7, 5.31e-7),
            Entry(4.49e-7, 3.62e-7),
            Entry(3.01e-7, 1.99e-7),
            Entry(1.45e-7, 8.58e-8),
        ),
    },
    0.5: {
        "autodiff": (
            Entry(3.34e-4, 1.06e-7),
            Entry(7.34e-5, 1.61e-7),
            Entry(1.08e-5, 2.49e-7),
            Entry(2.64e-6, 2.59e-7),
            Entry(9.18e-7, 4.13e-7),
            Entry(1.12e-6, 6.59e-7),
            Entry(4.55e-6, 1.94e-6),
        ),
        "adjoint": (
            Entry(2.67e-4, 1.79e-4),
            Entry(6.17e-5, 4.07e-5),
            Entry(9.35e-6, 5.94e-6),
            Entry(2.17e-6, 1.33e-6),
            Entry(6.73e-7, 4.93e-7),
            Entry(7.36e-7, 7.44e-7),
            Entry(6.94e-7, 4.73e-7),
        ),
    },
    1.0: {
        "autodiff": (
            Entry(2.51e-3, 9.23e-4),
            Entry(5.82e-4, 1.89e-4),
            Entry(8.90e-5, 2.71e-5),
            Entry(2.19e-5, 6.69e-6),
            Entry(5.54e-6, 1.92e-6),
            Entry(1.16e-6, 1.02e-6),
            Entry(1.51e-6, 1.51e-6),
        ),
        "adjoint": (
            Entry(2.48e-3, 7.28e-8),
            Entry(5.04e-4, 1.64e-7),
            Entry(7.17e-5, 2.14e-7),
            Entry(1.73e-5, 3.40e-7),
            Entry(4.34e-6, 4.82e-7),
            Entry(9.91e-7, 5.42e-7),
            Entry(9.96e-7, 7.64e-7),
        ),
    },
    2.0: {
        "autodiff": (
            Entry(4.74e-1, 4.13e-3),
            Entry(7.33e-2, 4.91e-4),
            Entry(9.28e-3, 5.93e-5),
            Entry(2.16e-3, 1.38e-5),
            Entry(5.23e-4, 3.76e-6),
            Entry(8.14e-5, 1.27e-6),
            Entry(2.01e-5, 1.34e-6),
        ),
        "adjoint": (
            Entry(2.92e-1, 1.41e-7),
            Entry(4.77e-2, 2.00e-7),
            Entry(6.10e-3, 2.51e-7),
            Entry(1.42e-3, 2.88e-7),
            Entry(3.44e-4, 5.31e-7),
            Entry(5.39e-5, 6.10e-7),
            Entry(1.32e-5, 1.05e-6),
        ),
    },
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

TABLE_5: dict[float, Column] = {
    0.1: (
        Entry(7.62e-4, 2.04e-4),
        Entry(3.55e-4, 9.49e-5),
        Entry(1.33e-4, 3.55e-5),
        Entry(6.24e-5, 1.67e-5),
        Entry(2.76e-5, 7.34e-6),
        Entry(6.87e-6, 1.83e-6),
    ),
    0.3: (
        Entry(4.82e-3, 9.07e-4),
        Entry(2.26e-3, 4.21e-4),
        Entry(8.63e-4, 1.61e-4),
        Entry(4.19e-4, 7.79e-5),
        Entry(2.01e-4, 3.74e-5),
        Entry(7.16e-5, 1.33e-5),
    ),
    0.5: (
        Entry(1.17e-2, 2.17e-3),
        Entry(5.46e-3, 1.01e-3),
        Entry(2.09e-3, 3.85e-4),
        Entry(1.03e-3, 1.88e-4),
        Entry(4.99e-4, 9.16e-5),
        Entry(1.87e-4, 3.42e-5),
    ),
}
"""By T, CosMixture; each column follows `TABLE_5_STATES`."""
