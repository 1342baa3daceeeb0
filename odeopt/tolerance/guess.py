"""What is tried first, before anything has been solved."""

from __future__ import annotations

import math
from bisect import bisect

from odeopt.tolerance.pilot import AT_ONCE, Pilot
from odeopt.tolerance.setting import FIXED, STABILIZED, Setting

LOOSE, MIDDLE, TIGHT = 0.05, 0.002, 5e-4
"""Tolerances down to which gradient descent does, methods of order 2, and one of order 3; below the
last RK4 does longest before the stabilised solver takes its place."""

SHORT, SHORTEST = 7.5, 3.0
r"""$\rho T$ below which RK4 is taken where modified Euler would be, and that in place of gradient
descent: of a few long steps high order pays, if there are more than two."""

STRETCHED = 10.0
r"""$\rho T$ from which on, where the spectrum is real, `Chebyshev2` and `Chebyshev3` take the place
of modified Euler and RK4: their steps stay stable if the curvature doubles on the way."""

FEWEST_STEPS, FEWEST_OF_RK4 = 2.0, 1.0
"""Fewer steps are not tried at first; of RK4 one step may do where few digits are asked for."""

STIFF_IF_LOOSE, STIFF, STIFF_IF_TIGHT = 80.0, 50.0, 80.0
r"""$\rho T$ from which on the stabilised solver, of order 2, takes the place of others."""

STIFF_IF_AFFINE, STIFFER = 150.0, 0.15
"""The same for a tolerance of 0.1 where the velocity is affine, so that fixed steps do not become
unstable; it grows with one over the tolerance to this power."""

HORIZONS = (3.0, 12.0, 50.0)
r"""$\rho T$ for which lengths of steps are given; in between they are interpolated."""

LENGTHS = {
    "euler": (1.22, 1.31, 1.02),
    "modified-euler": (1.34, 1.0, 0.93),
    "chebyshev-2": (1.7, 1.7, 2.1),
    "chebyshev-3": (1.3, 1.3, 1.3),
    "rk4": (1.02, 1.63, 1.35),
}
r"""Lengths of steps in units of $1/\rho$. Most networks of the benchmark `tolerance` were within
the tolerance with these, or with up to three times as many: too coarse a guess costs little where
its error can be told, and too fine a one is never made up for."""

FULL_LENGTH = {
    "euler": 0.1,
    "modified-euler": 0.005,
    "chebyshev-2": 0.01,
    "chebyshev-3": 0.001,
    "rk4": 0.001,
}
"""Tolerances of the lengths; tighter ones need shorter steps, by the order."""

LONGEST = {"rk4": 2.0}
"""Looser ones have longer steps of a method up to this; others stay as they are."""

AFFINE_LENGTHS = {"euler": 1.45, "modified-euler": 1.33, "rk4": 1.84}
"""The same where the velocity is affine."""

AFFINE_ERRORS = {"euler": 0.57, "modified-euler": 1.4}
r"""With these steps the error is about $(c / \rho T)^p$ there: that of the slow modes, since the
fast ones are gone."""

SHARE, SPREAD = 1.68, 100.0
r"""The stabilised solver aims first at an error x with $x\,(1 + \text{spread}\,x)$ at this share of
the tolerance. Its finer partner has a third of that error."""

SHARE_IF_AFFINE = 0.6
"""Of the tolerance, as the tolerance of a step, where the velocity is affine."""


def first_setting(pilot: Pilot, tol: float) -> Setting:
    """A guess, made before anything has been solved.

    Args:
        pilot: what is known of the flow.
        tol: the tolerance.
    """
    return stabilized(pilot, tol) if _stiff(pilot, tol) else fixed_steps(pilot, tol)


def fixed_steps(pilot: Pilot, tol: float) -> Setting:
    """The first guess with fixed steps."""
    stiffness = pilot.stiffness
    if pilot.affine:
        method = _method_if_affine(stiffness, tol)
        length = AFFINE_LENGTHS[method]
    else:
        method = _method(pilot, tol)
        length = _length(method, stiffness, tol)
    one_may_do = method == "rk4" and tol >= MIDDLE
    fewest = FEWEST_OF_RK4 if one_may_do else FEWEST_STEPS
    return Setting(method, max(stiffness / length, fewest)).finer(1.0)


def _method(pilot: Pilot, tol: float) -> str:
    stiffness = pilot.stiffness
    if tol >= LOOSE:
        few = SHORTEST > stiffness > AT_ONCE
        return "modified-euler" if few else "euler"
    if pilot.real_spectrum and stiffness >= STRETCHED and tol >= TIGHT:
        return "chebyshev-2" if tol >= MIDDLE else "chebyshev-3"
    return "modified-euler" if tol >= MIDDLE and stiffness >= SHORT else "rk4"


def _length(method: str, stiffness: float, tol: float) -> float:
    share = (tol / FULL_LENGTH[method]) ** (1 / FIXED[method].order)
    length = _interpolated(LENGTHS[method], stiffness)
    return min(length * share, LONGEST.get(method, length))


def _interpolated(lengths: tuple[float, ...], stiffness: float) -> float:
    """Between the lengths at `HORIZONS`, in powers of the horizon."""
    stiffness = min(max(stiffness, HORIZONS[0]), HORIZONS[-1])
    k = min(bisect(HORIZONS, stiffness), len(HORIZONS) - 1)
    low, high = HORIZONS[k - 1 : k + 1]
    place = math.log(stiffness / low) / math.log(high / low)
    return lengths[k - 1] ** (1 - place) * lengths[k] ** place


def _method_if_affine(stiffness: float, tol: float) -> str:
    """The lowest order that does with steps that are about as long as is stable."""
    for method, error in AFFINE_ERRORS.items():
        if (error / stiffness) ** FIXED[method].order <= tol:
            return method
    return "rk4"


def stiff_from(pilot: Pilot, tol: float) -> float:
    r"""$\rho T$ above which the stabilised solver is the first choice."""
    if pilot.affine:
        return STIFF_IF_AFFINE * (0.1 / tol) ** STIFFER
    if tol >= LOOSE:
        return STIFF_IF_LOOSE
    return STIFF if tol >= TIGHT else STIFF_IF_TIGHT


def _stiff(pilot: Pilot, tol: float) -> bool:
    return pilot.real_spectrum and pilot.stiffness > stiff_from(pilot, tol)


def stabilized(pilot: Pilot, tol: float) -> Setting:
    """The stabilised solver, as fine as most problems needed it."""
    if pilot.affine:
        return Setting(STABILIZED, 1 / (SHARE_IF_AFFINE * tol)).finer(1.0)
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


def reason(pilot: Pilot, tol: float) -> str:
    """Why a method is taken, in words."""
    limit = stiff_from(pilot, tol)
    side = "above" if _stiff(pilot, tol) else "below"
    found = f"rho * T is about {pilot.stiffness:.3g}, {side} {limit:g}"
    if pilot.affine:
        found += ", and the velocity is affine"
    if not pilot.real_spectrum and pilot.stiffness > limit:
        found += ", but the Jacobian may not be symmetric"
    return found
