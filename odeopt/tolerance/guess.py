"""What is tried first, before anything has been solved."""

from __future__ import annotations

import math

from odeopt.tolerance.setting import FIXED, STABILIZED, Setting

SHARE, SPREAD = 1.2, 100.0
r"""The stabilised solver aims first at an error x with $x\,(1 + \text{spread}\,x)$ at this share of
the tolerance. Its finer partner has a third of that error."""

LOOSE, TIGHT = 0.05, 1e-3
"""Tolerances from which on gradient descent does, and below which order 4 pays."""

STIFF_IF_LOOSE, STIFF, STIFF_IF_TIGHT = 60.0, 30.0, 100.0
r"""$\rho T$ from which on the stabilised solver, of order 2, takes the place of methods of order 1,
2 and 4."""

SHORT = 6.0
r"""$\rho T$ below which RK4 is taken where modified Euler would be: of a few long steps high order
pays."""


def first_setting(stiffness: float, tol: float, real_spectrum: bool) -> Setting:
    r"""A guess, made before anything has been solved.

    Args:
        stiffness: $\rho T$, with the spectral radius at the start.
        tol: the tolerance.
        real_spectrum: whether the stabilised solver may be used.
    """
    stiff = real_spectrum and stiffness > stiff_from(tol)
    return stabilized(tol) if stiff else fixed_steps(stiffness, tol)


def fixed_steps(stiffness: float, tol: float) -> Setting:
    r"""The first guess with fixed steps.

    The lengths of steps, in units of $1/\rho$, are such that most of the problems of the benchmark
    `tolerance` were within the tolerance with that or with half as many steps again, and were
    stable.
    """
    if tol >= LOOSE:
        method, length = "euler", 1.2
    elif tol >= 0.002 and stiffness >= SHORT:
        method, length = "modified-euler", min(1.2, 1.2 * (tol / 0.005) ** 0.5)
    else:
        method, length = "rk4", min(2.2, 1.5 * (tol / 0.001) ** 0.25)
    return Setting(method, max(stiffness / length, 2.0)).finer(1.0)


def stiff_from(tol: float) -> float:
    r"""$\rho T$ above which the stabilised solver is the first choice."""
    if tol >= LOOSE:
        return STIFF_IF_LOOSE
    return STIFF if tol >= TIGHT else STIFF_IF_TIGHT


def stabilized(tol: float) -> Setting:
    """The stabilised solver, as fine as networks needed it most often."""
    bound = SHARE * tol
    return Setting(STABILIZED, 1.0).finer((1 + math.sqrt(1 + 4 * SPREAD * bound)) / (2 * bound))


def coarsest(method: str, stiffness: float, tol: float) -> Setting:
    """The coarsest setting whose errors mean something.

    Pairs of unstable steps can have equal errors by chance, and so can a handful of steps that grew
    with a loose tolerance.
    """
    if method == STABILIZED:
        return Setting(STABILIZED, 1.0).finer(1 / tol)
    return Setting(method, stiffness / FIXED[method].stability_limit).finer(1.0)
