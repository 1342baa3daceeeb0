"""Butcher tableaus of explicit Runge-Kutta methods."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tableau:
    r"""$Y_i = y + dt\sum_{j<i} a_{ij} K_j,\ K_i = f(t + c_i dt, Y_i),\ y_1 = y + dt\sum_i b_i K_i$.

    Attributes:
        a: row i holds the i coefficients before the diagonal (the first row is empty).
        b: the weights.
        order: the order of convergence.
        stability_limit: the largest stable step times decay rate on the real axis.
        b_error: `b` minus the weights of the embedded method, for error estimates.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    stability_limit: float
    b_error: tuple[float, ...] | None = None

    @property
    def c(self) -> tuple[float, ...]:
        """The stage times, row sums of a."""
        return tuple(sum(row) for row in self.a)

    @property
    def stages(self) -> int:
        """The stages that the step itself needs (not those for the error estimate alone)."""
        return max(i for i, weight in enumerate(self.b) if weight != 0) + 1


EULER = Tableau(a=((),), b=(1.0,), order=1, stability_limit=2.0)

HEUN = Tableau(a=((), (1.0,)), b=(0.5, 0.5), order=2, stability_limit=2.0)

MIDPOINT = Tableau(a=((), (0.5,)), b=(0.0, 1.0), order=2, stability_limit=2.0)

CHEBYSHEV_2 = Tableau(
    a=((), (2 / 15,), (0.0, 0.5)), b=(0.0, 0.0, 1.0), order=2, stability_limit=5.8
)

CHEBYSHEV_3 = Tableau(
    a=((), (0.12,), (0.0, 1 / 3), (0.0, 0.0, 2 / 3)),
    b=(1 / 4, 0.0, 0.0, 3 / 4),
    order=3,
    stability_limit=5.4,
)

RUNGE_KUTTA_4 = Tableau(
    a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    order=4,
    stability_limit=2.785,
)

BOGACKI_SHAMPINE = Tableau(
    a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    order=3,
    stability_limit=2.51,
    b_error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)
"""Bogacki and Shampine 1989, "A 3(2) pair of Runge-Kutta formulas"."""

DORMAND_PRINCE = Tableau(
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    order=5,
    stability_limit=3.3,
    b_error=(
        35 / 384 - 5179 / 57600,
        0.0,
        500 / 1113 - 7571 / 16695,
        125 / 192 - 393 / 640,
        -2187 / 6784 + 92097 / 339200,
        11 / 84 - 187 / 2100,
        -1 / 40,
    ),
)
"""Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae"."""
