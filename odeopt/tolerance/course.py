"""Deciding on a setting, and what was learnt from the calls before.

Fixed steps are judged by pairs: a setting and a finer one, with half as many steps again at first.
Their difference says how far either is from the flow, so that the coarser one, once it is known to
be good enough, does for the calls that follow; and where both are too coarse, how many steps do,
whose solve is compared with one that has been made. The stabilised solver is judged by an estimate
of its own.
"""

from __future__ import annotations

from dataclasses import replace

from odeopt.result import ErrorEstimate
from odeopt.tolerance.guess import coarsest, first_setting, stabilized, stiff_from
from odeopt.tolerance.leftover import bound_of, next_term_of, size_of
from odeopt.tolerance.setting import FIXED, RTOL_POWER, STABILIZED, Setting

AIM = 0.7
"""The share of the tolerance that is aimed at."""

CLOSE_AIM = 0.85
"""The same where the terms that an estimate leaves out are counted as well."""

ENOUGH = 0.8
"""The share of the tolerance up to which the coarser setting of a pair does for later calls."""

WORTHWHILE = 0.75
"""A coarser setting is tried if it takes less than this share of the steps."""

AUDIT = 10
"""So many calls with one setting have one error estimate."""

WIDEST_GAP = 0.3
"""A larger change of the gradient with steps twice as long says nothing about its error."""

CLEAR_GAP = 0.1
"""A larger one tells that more steps are needed, but hardly how many."""

PATIENCE = 3
"""So many settings with fixed steps are tried before the stabilised solver takes over."""

LARGEST_GAIN = 1e3
"""By how much the error is to fall from one setting to a finer one."""

LARGEST_LEAP = 8.0
"""By how much the error may grow from one setting to a coarser one."""

APART = 1.25
"""A setting is not tried that has fewer steps than this multiple of one that was too coarse."""


class Course:
    """What is known of solves over one horizon.

    Attributes:
        setting: what is judged next; with fixed steps, the coarser of a pair.
        finer: the finer one of the pair; with the stabilised solver the same.
        working: what calls use that judge nothing; None before the first setting is found.
        error: what is known of the error of `working`.
        why: why this method was taken, in words.
        stalled: whether a finer setting has not made the error smaller.
    """

    def __init__(self, stiffness: float, tol: float, real_spectrum: bool) -> None:
        self._judge(first_setting(stiffness, tol, real_spectrum))
        self.working: Setting | None = None
        self.error: ErrorEstimate | None = None
        stiff = self.setting.method == STABILIZED
        limit = stiff_from(tol)
        self.why = f"rho * T is about {stiffness:.3g}, {'above' if stiff else 'below'} {limit:g}"
        if not real_spectrum and stiffness > limit:
            self.why += ", but the Jacobian may not be symmetric"
        self._tol, self._stiffness, self._real_spectrum = tol, stiffness, real_spectrum
        self._judged: tuple[Setting, Setting] | None = None
        self._too_coarse: Setting | None = None
        self._calls = self._failures = 0
        self._missed: tuple[str, float] | None = None
        self.stalled = False

    @property
    def due(self) -> bool:
        """Whether the next call is to judge a setting."""
        return self.working is None or self._pair != self._judged or self._calls >= AUDIT

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
        self.working, self.error, self._judged, self._calls = working, own, self._pair, 0
        if working != self.setting:
            self._too_coarse = self.setting
        self._relax(working, own)
        return True

    def fail(self) -> None:
        """Take note of a solve that diverged."""
        self._refine(None)

    def _meets(self, error: ErrorEstimate) -> bool:
        """Whether the tolerance is met, with room for the terms that the estimate leaves out."""
        return error.gap <= WIDEST_GAP and bound_of(error) <= self._tol

    def _choose(self, error: ErrorEstimate, change: float) -> tuple[Setting, ErrorEstimate]:
        """What calls are to use, and its error: the coarser of a pair, if that meets it too."""
        if self.setting.method == STABILIZED:
            return self.setting, error
        if change + bound_of(error) > ENOUGH * self._tol:
            return self.finer, error
        size = size_of(error)
        return self.setting, _scaled(error, (size + change) / size if size > 0 else 1.0)

    def _judge(self, setting: Setting, finer: Setting | None = None) -> None:
        """What is judged next."""
        self.setting, self.finer = setting, finer or setting.partner

    @property
    def _pair(self) -> tuple[Setting, Setting]:
        return self.setting, self.finer

    @property
    def _is_trial(self) -> bool:
        """Whether a coarser setting is tried while another one is known to do."""
        return self._judged is not None and self._judged != self._pair

    def _go_back(self) -> None:
        """To the pair before the one that was tried."""
        assert self._judged is not None, "only then is another one tried"
        self._too_coarse = self.setting
        self._judge(*self._judged)

    def _relax(self, working: Setting, own: ErrorEstimate) -> None:
        """Try less the next time if the error is much smaller than it needs to be."""
        fixed, known = working.method in FIXED, self._too_coarse
        proposals = [
            working.finer(max(size_of(own) / (AIM * self._tol), 1 / LARGEST_LEAP)),
            coarsest(working.method, self._stiffness, self._tol),
        ]
        if known is not None and known.method == working.method:
            proposals.append(known.finer(APART**known.solver.order if fixed else 2.0))
        proposal = max(proposals, key=_fineness)
        share = WORTHWHILE if fixed else WORTHWHILE ** (working.solver.order * RTOL_POWER)
        if proposal.fineness < share * working.fineness:
            self._judge(proposal)

    def _refine(self, error: ErrorEstimate | None) -> None:
        if self._is_trial:
            self._go_back()
            return
        self.working = self._judged = None
        self._failures += 1
        known = error if error is not None and error.gap <= WIDEST_GAP else None
        if known is None and self._can_stabilize():
            self._judge(stabilized(self._tol))
            self.why = "fixed steps were unstable"
            return
        self._notice(known)
        self._judge(*self._next(known))

    def _next(self, error: ErrorEstimate | None) -> tuple[Setting, Setting | None]:
        """What is to be judged after an error that was too large, or is not known.

        Of fixed steps the solve that is wanted, beside the finer one of the pair, whose error is
        all but the change between the two.
        """
        size = 0.0 if error is None else size_of(error)
        if self.setting.method == STABILIZED:
            gain = min(size / (AIM * self._tol), LARGEST_GAIN)
            return self.setting.finer(max(gain, 2.0**self.setting.solver.order)), None
        if error is None or error.gap > CLEAR_GAP:
            return self.finer, None
        gain = size * (1 + next_term_of(error.order) * size) / (CLOSE_AIM * self._tol)
        wanted = self.finer.finer(min(gain, LARGEST_GAIN))
        return self.finer, max(wanted, self.finer.partner, key=_fineness)

    def _notice(self, error: ErrorEstimate | None) -> None:
        """Compare an error that was too large with the one before, of a coarser setting.

        Only estimates that can be trusted say that rounding limits the error: steps that are far
        too long can have equal errors by chance.
        """
        before, self._missed = self._missed, None
        if error is None or not error.trusted:
            return
        self._missed = (self.setting.method, size_of(error))
        if before is not None and before[0] == self.setting.method:
            self.stalled = size_of(error) > 0.5 * before[1]

    def _can_stabilize(self) -> bool:
        """Whether the stabilised solver is to take over from steps that were too long."""
        suits = self._stiffness > stiff_from(self._tol) / 2
        fixed = self.setting.method in FIXED
        return fixed and self._real_spectrum and (self._failures > PATIENCE or suits)


def _fineness(setting: Setting) -> float:
    return setting.fineness


def _scaled(error: ErrorEstimate, factor: float) -> ErrorEstimate:
    return replace(
        error, value=factor * error.value, params=factor * error.params,
        hparams=factor * error.hparams,
    )  # fmt: skip
