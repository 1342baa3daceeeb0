"""Deciding on a setting, and what was learnt from the calls before.

Fixed steps are judged by pairs: a setting and its partner, with half as many steps again. Their
difference says how far either is from the flow, so that the coarser one, once it is known to be
good enough, does for the calls that follow. The stabilised solver is judged by an estimate of its
own.
"""

from __future__ import annotations

import math
from dataclasses import replace

from odeopt.result import ErrorEstimate
from odeopt.tolerance.setting import FIXED, RTOL_POWER, STABILIZED, Setting

AIM = 0.7
"""The share of the tolerance that is aimed at."""

FIRST_AIM = 0.25
"""The same for the first step of the stabilised solver: a second attempt costs more."""

ENOUGH = 0.8
"""The share of the tolerance up to which the coarser setting of a pair does for later calls."""

WORTHWHILE = 0.75
"""A coarser setting is tried if it takes less than this share of the steps."""

STIFF, STIFF_FOR_RK4 = 60.0, 200.0
r"""$\rho T$ from which on the stabilised solver is taken, and for tolerances so tight that its
order of 2 costs more than the stability of RK4."""

AUDIT = 10
"""So many calls with one setting have one error estimate."""

WIDEST_GAP = 0.3
"""A larger change of the gradient with steps twice as long says nothing about its error."""

NEXT_TERM, NEXT_TERM_OF_EULER = 15.0, 5.0
"""The terms that an estimate leaves out, as a share of it and in units of the gap: they were up to
4.3 on random quadratic problems, and 14 for a small network by a method of order 2."""

CHEAP = 1e-3
"""A tolerance that the stabilised solver, of order 2, meets for little more than its stability."""

LARGEST_GAIN = 1e3
"""By how much the error is to fall from one setting to a finer one."""

LARGEST_LEAP = 8.0
"""By how much the error may grow from one setting to a coarser one."""

APART = 1.25
"""A setting is not tried that has fewer steps than this multiple of one that was too coarse."""


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
    elif tol >= 0.002:
        method, length = "modified-euler", min(1.0, (tol / 0.005) ** 0.5)
    else:
        method, length = "rk4", 1.8 * min(1.0, (tol / 0.001) ** 0.25)
    return Setting(method, max(stiffness / length, 2.0)).finer(1.0)


def stiff_from(tol: float) -> float:
    r"""$\rho T$ above which the stabilised solver is the first choice."""
    return STIFF if tol >= CHEAP else STIFF_FOR_RK4


def stabilized(tol: float) -> Setting:
    """The stabilised solver, with the tolerance of a step that nearly always does."""
    return Setting(STABILIZED, 1.0).finer(1 / (FIRST_AIM * tol))


def coarsest(method: str, stiffness: float, tol: float) -> Setting:
    """The coarsest setting whose errors mean something.

    Pairs of unstable steps can have equal errors by chance, and so can a handful of steps that grew
    with a loose tolerance.
    """
    if method == STABILIZED:
        return Setting(STABILIZED, 1.0).finer(1 / tol)
    return Setting(method, stiffness / FIXED[method].stability_limit).finer(1.0)


class Course:
    """What is known of solves over one horizon.

    Attributes:
        setting: what is judged next; with fixed steps, the coarser of the pair.
        working: what calls use that judge nothing; None before the first setting is found.
        error: what is known of the error of `working`.
        why: why this method was taken, in words.
        stalled: whether a finer setting has not made the error smaller.
    """

    def __init__(self, stiffness: float, tol: float, real_spectrum: bool) -> None:
        self.setting = first_setting(stiffness, tol, real_spectrum)
        self.working: Setting | None = None
        self.error: ErrorEstimate | None = None
        stiff = self.setting.method == STABILIZED
        limit = stiff_from(tol)
        self.why = f"rho * T is about {stiffness:.3g}, {'above' if stiff else 'below'} {limit:g}"
        if not real_spectrum and stiffness > limit:
            self.why += ", but the Jacobian may not be symmetric"
        self._tol, self._stiffness, self._real_spectrum = tol, stiffness, real_spectrum
        self._judged: Setting | None = None
        self._too_coarse: Setting | None = None
        self._calls = self._failures = 0
        self._missed: tuple[str, float] | None = None
        self.stalled = False

    @property
    def due(self) -> bool:
        """Whether the next call is to judge a setting."""
        return self.working is None or self.setting != self._judged or self._calls >= AUDIT

    def note_call(self) -> None:
        """Take note of a call that judged nothing."""
        self._calls += 1

    def accept(self, error: ErrorEstimate, change: float = 0.0) -> bool:
        """Take note of an error; whether it will do.

        Args:
            error: with fixed steps of the finer of the pair; its gap is the change that steps twice
                as long would make.
            change: the relative change of the gradient between the two of a pair.
        """
        if not self._meets(error):
            self._refine(error)
            return False
        self._failures, self._missed = 0, None
        working, own = self._choose(error, change)
        before = self.working if self._is_trial else None
        if before is not None and working.fineness >= before.fineness:  # nothing is gained
            self._go_back()
            return True
        self.working, self.error, self._judged, self._calls = working, own, self.setting, 0
        if working != self.setting:
            self._too_coarse = self.setting
        self._relax(working, own)
        return True

    def fail(self) -> None:
        """Take note of a solve that diverged."""
        self._refine(None)

    def _meets(self, error: ErrorEstimate) -> bool:
        """Whether the tolerance is met, with room for the terms that the estimate leaves out."""
        return error.gap <= WIDEST_GAP and _bound(error) <= self._tol

    def _choose(self, error: ErrorEstimate, change: float) -> tuple[Setting, ErrorEstimate]:
        """What calls are to use, and its error: the coarser of a pair, if that meets it too."""
        if self.setting.method == STABILIZED:
            return self.setting, error
        if change + _bound(error) > ENOUGH * self._tol:
            return self.setting.partner, error
        size = _size(error)
        return self.setting, _scaled(error, (size + change) / size if size > 0 else 1.0)

    @property
    def _is_trial(self) -> bool:
        """Whether a coarser setting is tried while another one is known to do."""
        return self._judged is not None and self._judged != self.setting

    def _go_back(self) -> None:
        """To the setting before the one that was tried."""
        assert self._judged is not None, "only then is another one tried"
        self._too_coarse, self.setting = self.setting, self._judged

    def _relax(self, working: Setting, own: ErrorEstimate) -> None:
        """Try less the next time if the error is much smaller than it needs to be."""
        fixed, known = working.method in FIXED, self._too_coarse
        proposals = [
            working.finer(max(_size(own) / (AIM * self._tol), 1 / LARGEST_LEAP)),
            coarsest(working.method, self._stiffness, self._tol),
        ]
        if known is not None and known.method == working.method:
            proposals.append(known.finer(APART**known.solver.order if fixed else 2.0))
        proposal = max(proposals, key=lambda setting: setting.fineness)
        share = WORTHWHILE if fixed else WORTHWHILE ** (working.solver.order * RTOL_POWER)
        if proposal.fineness < share * working.fineness:
            self.setting = proposal

    def _refine(self, error: ErrorEstimate | None) -> None:
        if self._is_trial:
            self._go_back()
            return
        self.working = self._judged = None
        self._failures += 1
        known = error is not None and error.gap <= WIDEST_GAP
        if not known and self._can_stabilize():
            self.setting = stabilized(self._tol)
            self.why = "fixed steps were unstable"
        elif error is not None and known and (error.trusted or self.setting.method == STABILIZED):
            self._notice(error)
            factor = _size(error) / (AIM * self._tol)
            self.setting = self._next(min(factor, LARGEST_GAIN))
        else:
            self._missed = None
            self.setting = self._next(1.0)

    def _next(self, factor: float) -> Setting:
        """A finer setting; of fixed steps the partner, which has been solved, if that does.

        The factor is that by which the error of the partner is to fall.
        """
        if self.setting.method == STABILIZED:
            return self.setting.finer(max(factor, 2.0**self.setting.solver.order))
        finer, partner = self.setting.finer(factor), self.setting.partner
        return max(finer, partner, key=lambda setting: setting.fineness)

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


def _bound(error: ErrorEstimate) -> float:
    """The error with room for the terms that its estimate leaves out."""
    next_term = NEXT_TERM_OF_EULER if error.order == 1 else NEXT_TERM
    return _size(error) * (1 + next_term * error.gap)


def _size(error: ErrorEstimate) -> float:
    size = max(error.params, error.hparams)
    return size if math.isfinite(size) else math.inf


def _scaled(error: ErrorEstimate, factor: float) -> ErrorEstimate:
    return replace(
        error, value=factor * error.value, params=factor * error.params,
        hparams=factor * error.hparams,
    )  # fmt: skip
