"""What is tried first, before anything has been solved."""

from __future__ import annotations

from odeopt.tolerance.leftover import NEXT_TERM, leading
from odeopt.tolerance.setting import FIXED, STABILIZED, Setting

FIRST_AIM = 0.25
"""The share of the tolerance that the stabilised solver aims at first, with the terms that an
estimate leaves out counted four times: a second attempt costs more."""

STIFF, STIFF_FOR_RK4 = 60.0, 200.0
r"""$\rho T$ from which on the stabilised solver is taken, and for tolerances so tight that its
order of 2 costs more than the stability of RK4."""

SHORT = 12.0
r"""$\rho T$ below which RK4 is taken where modified Euler would be: of a few long steps high order
pays."""

CHEAP = 1e-3
"""A tolerance that the stabilised solver, of order 2, meets for little more than its stability."""


def first_setting(stiffness: float, tol: float, real_spectrum: bool) -> Setting:
    r"""A guess, made before anything has been solved.

    The lengths of steps, in units of $1/\rho$, are twice those with which a small network was
    within the tolerance, and such that they are stable.

    Args:
        stiffness: $\rho T$, with the spectral radius at the start.
        tol: the tolerance.
        real_spectrum: whether the stabilised solver may be used.
    """
    if real_spectrum and stiffness > stiff_from(tol):
        return stabilized(tol)
    if tol >= 0.05:
        method, length = "euler", 1.0
    elif tol >= 0.002 and stiffness >= SHORT:
        method, length = "modified-euler", min(1.0, (tol / 0.005) ** 0.5)
    else:
        method, length = "rk4", min(2.2, 1.8 * (tol / 0.001) ** 0.25)
    return Setting(method, max(stiffness / length, 2.0)).finer(1.0)


def stiff_from(tol: float) -> float:
    r"""$\rho T$ above which the stabilised solver is the first choice."""
    return STIFF if tol >= CHEAP else STIFF_FOR_RK4


def stabilized(tol: float) -> Setting:
    """The stabilised solver, with the tolerance of a step that nearly always does."""
    aim = leading(FIRST_AIM * tol, 4 * NEXT_TERM)
    return Setting(STABILIZED, 1.0).finer(1 / aim)


def coarsest(method: str, stiffness: float, tol: float) -> Setting:
    """The coarsest setting whose errors mean something.

    Pairs of unstable steps can have equal errors by chance, and so can a handful of steps that grew
    with a loose tolerance.
    """
    if method == STABILIZED:
        return Setting(STABILIZED, 1.0).finer(1 / tol)
    return Setting(method, stiffness / FIXED[method].stability_limit).finer(1.0)
