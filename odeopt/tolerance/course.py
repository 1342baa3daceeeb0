"""Deciding on a setting, and what was learnt from the calls before."""

from __future__ import annotations

import math

from odeopt.result import ErrorEstimate
from odeopt.tolerance.setting import FIXED, STABILIZED, Setting

AIM = 0.5
"""The share of the tolerance that is aimed at."""

FIRST_AIM = 0.25
"""The same for the first step of the stabilised solver: a second attempt costs more."""

WORTHWHILE = 0.75
"""A coarser setting is tried if it takes less than this share of the steps."""

STIFF, STIFF_FOR_RK4 = 60.0, 200.0
r"""$\rho T$ from which on the stabilised solver is taken, and for tolerances so tight that its
order of 2 costs more than the stability of RK4."""

AUDIT = 10
"""So many calls with one setting have one error estimate."""

WIDEST_GAP = 0.3
"""A larger change of the gradient with steps twice as long says nothing about its error."""

NEXT_TERM = 5.0
"""The terms that an estimate leaves out, as a share of it and in units of the gap: on random
quadratic problems they were up to 4.3."""

CHEAP = 1e-3
"""A tolerance that the stabilised solver, of order 2, meets for little more than its stability."""

LARGEST_GAIN = 1e3
"""By how much the error is to fall from one setting to a finer one."""

LARGEST_LEAP = 8.0
"""By how much the error may grow from one setting to a coarser one."""


def first_setting(stiffness: float, tol: float, real_spectrum: bool) -> Setting:
    r"""A guess, made before anything has been solved.

    The lengths of steps, in units of $1/\rho$, are those with which a small network was within
    the tolerance, and such that twice the length is stable.

    Args:
        stiffness: $\rho T$, with the spectral radius at the start.
        tol: the tolerance.
        real_spectrum: whether the stabilised solver may be used.
    """
    if real_spectrum and stiffness > stiff_from(tol):
        return stabilized(tol)
    if tol >= 0.05:
        method, length = "euler", 0.5
    elif tol >= 0.002:
        method, length = "modified-euler", 0.5 * min(1.0, (tol / 0.005) ** 0.5)
    else:
        method, length = "rk4", 0.9 * min(1.0, (tol / 0.001) ** 0.25)
    return Setting(method, max(stiffness / length, 4.0)).finer(1.0)


def stiff_from(tol: float) -> float:
    r"""$\rho T$ above which the stabilised solver is the first choice."""
    return STIFF if tol >= CHEAP else STIFF_FOR_RK4


def stabilized(tol: float) -> Setting:
    """The stabilised solver, with the tolerance of a step that nearly always does."""
    return Setting(STABILIZED, 1.0).finer(1 / (FIRST_AIM * tol))


def coarsest(method: str, stiffness: float, tol: float) -> Setting:
    """The coarsest setting whose estimate means something.

    Steps that are not stable even at twice their length can have equal errors by chance, and so can
    a handful of steps that grew with a loose tolerance.
    """
    if method == STABILIZED:
        return Setting(STABILIZED, 1.0).finer(1 / tol)
    return Setting(method, 2 * stiffness / FIXED[method].stability_limit).finer(1.0)


class Course:
    """What is known of solves over one horizon.

    Attributes:
        setting: what the next call is to use.
        error: the last estimate that met the tolerance; None before the first.
        why: why this method was taken, in words.
        stalled: whether a finer setting has not made the error smaller.
    """

    def __init__(self, stiffness: float, tol: float, real_spectrum: bool) -> None:
        self.setting = first_setting(stiffness, tol, real_spectrum)
        self.error: ErrorEstimate | None = None
        stiff = self.setting.method == STABILIZED
        limit = stiff_from(tol)
        self.why = f"rho * T is about {stiffness:.3g}, {'above' if stiff else 'below'} {limit:g}"
        if not real_spectrum and stiffness > limit:
            self.why += ", but the Jacobian may not be symmetric"
        self._tol, self._stiffness, self._real_spectrum = tol, stiffness, real_spectrum
        self._verified: Setting | None = None
        self._too_coarse: Setting | None = None
        self._calls = self._failures = 0
        self._missed: tuple[str, float] | None = None
        self.stalled = False

    @property
    def due(self) -> bool:
        """Whether the next call needs an estimate of its error."""
        return self.setting != self._verified or self._calls >= AUDIT

    def accept(self, error: ErrorEstimate | None) -> bool:
        """Take note of a solve; whether it meets the tolerance."""
        if error is None:
            self._calls += 1
            return True
        if not _meets(error, self._tol):
            self._refine(error)
            return False
        self.error, self._verified = error, self.setting
        self._calls = self._failures = 0
        self._missed = None
        self._relax(_size(error))
        return True

    def fail(self) -> None:
        """Take note of a solve that diverged."""
        self._refine(None)

    def _relax(self, size: float) -> None:
        """Try less the next time if the error is much smaller than it needs to be."""
        excess = size / (AIM * self._tol)
        if excess ** (1 / self.setting.solver.order) > WORTHWHILE:
            return
        method, known = self.setting.method, self._too_coarse
        proposals = [
            self.setting.finer(max(excess, 1 / LARGEST_LEAP)),
            coarsest(method, self._stiffness, self._tol),
        ]
        if known is not None and known.method == method:
            proposals.append(known.finer(2.0))
        proposal = max(proposals, key=lambda setting: setting.fineness)
        if proposal.fineness < 0.9 * self.setting.fineness:
            self.setting = proposal

    def _refine(self, error: ErrorEstimate | None) -> None:
        good = self._verified
        if good is not None and good.fineness > self.setting.fineness:
            self._too_coarse, self.setting, self._verified = self.setting, good, None
            return
        self._failures += 1
        known = error is not None and error.gap <= WIDEST_GAP
        if not known and self._can_stabilize():
            self.setting = stabilized(self._tol)
            self.why = "fixed steps were unstable"
        elif known and error is not None:
            self._notice(error)
            factor = _size(error) / (AIM * self._tol)
            self.setting = self.setting.finer(min(max(factor, 2.0), LARGEST_GAIN))
        else:
            self.setting = self.setting.finer(2.0**self.setting.solver.order)

    def _notice(self, error: ErrorEstimate) -> None:
        """Compare an error that was too large with the one before, of a coarser setting.

        Only estimates that can be trusted say that rounding limits the error: steps that are far
        too long can have equal errors by chance.
        """
        before, self._missed = self._missed, None
        if not error.trusted:
            return
        self._missed = (self.setting.method, _size(error))
        if before is not None and before[0] == self.setting.method:
            self.stalled = _size(error) > 0.5 * before[1]

    def _can_stabilize(self) -> bool:
        """Whether the stabilised solver is to take over from steps that were too long."""
        suits = self._tol >= CHEAP and self._stiffness > STIFF / 2
        fixed = self.setting.method in FIXED
        return fixed and self._real_spectrum and (self._failures > 1 or suits)


def _meets(error: ErrorEstimate, tol: float) -> bool:
    """Whether the tolerance is met, with room for the terms that the estimate leaves out."""
    return error.gap <= WIDEST_GAP and _size(error) * (1 + NEXT_TERM * error.gap) <= tol


def _size(error: ErrorEstimate) -> float:
    size = max(error.params, error.hparams)
    return size if math.isfinite(size) else math.inf
