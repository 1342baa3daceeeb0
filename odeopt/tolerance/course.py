"""Deciding on a setting, and what was learnt from the calls before.

Settings are judged by pairs: one and a finer one. Their difference says how far either is from the
flow, so that the coarser one, once it is known to be good enough, does for the calls that follow;
and where both are too coarse, how fine a setting does, whose solve is compared with one of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from odeopt.gradient.error_estimate import scaled
from odeopt.gradient.result import ErrorEstimate
from odeopt.tolerance.guess import (
    coarsest,
    first_setting,
    fixed_steps,
    reason,
    stabilized,
    stiff_from,
)
from odeopt.tolerance.pair import (
    FURTHER,
    FURTHER_IF_STABLE,
    WIDEST_GAP,
    is_clear,
    is_regular,
    pair_after,
)
from odeopt.tolerance.pilot import Pilot
from odeopt.tolerance.setting import FIXED, STABILIZED, Setting

AIM = 0.7
"""The share of the tolerance that is aimed at."""

LATER_AIM, CLOSE_AIM = 0.8, 0.86
"""The same after a call that ended with an extrapolated gradient, and within a call whose first
estimates were too large."""

LARGEST_AIM = 1.2
"""The largest share of it that is aimed at within a call, where extrapolation leaves less."""

NEXT_TERM_OF_EULER, NEXT_TERM = 3.0, 18.0
"""The terms that an estimate leaves out where solutions may oscillate, as a share of it and in
units of the gap: what heavy ball needed."""

ENOUGH = 0.85
"""The share of the tolerance up to which a setting does for later calls."""

WORTHWHILE = 0.75
"""A coarser setting is tried if it takes less than this share of the steps."""

AUDIT = 10
"""So many calls with one setting have one error estimate."""

PATIENCE = 4
"""So many pairs with fixed steps are tried before the stabilised solver takes over."""

TELLING_GAIN = 4.0
"""By how much an error should have fallen to say that it does not."""

LARGEST_LEAP = 8.0
"""By how much the error may grow from one setting to a coarser one."""

APART = 1.25
"""A setting is not tried that has fewer steps than this multiple of one that was too coarse."""


class _Found(NamedTuple):
    """A setting that does: that of a judged pair which calls use, its error and its cost."""

    pair: tuple[Setting, Setting]
    working: Setting
    error: ErrorEstimate
    cost: int


class Course:
    """What is known of solves over one horizon.

    Attributes:
        setting: the coarser of the pair that is judged next.
        finer: the finer one.
        why: why this method was taken, in words.
        stalled: whether a finer setting has not made the error smaller.
    """

    def __init__(self, pilot: Pilot, tol: float) -> None:
        self._judge(first_setting(pilot, tol))
        self._found: _Found | None = None
        self.why = reason(pilot, tol)
        stiff = self.setting.method == STABILIZED
        self._tol, self._pilot = tol, pilot
        self._too_coarse: Setting | None = None
        self._other = fixed_steps(pilot, tol) if stiff else None
        self._calls = self._failures = 0
        self._missed: tuple[Setting, float] | None = None
        self._expected: Setting | None = None
        self.stalled = False

    @property
    def working(self) -> Setting | None:
        """What calls use that judge nothing; None before the first setting is found."""
        return None if self._found is None else self._found.working

    @property
    def usable(self) -> Setting | None:
        """What a plain solve takes: `working`, or what is expected to do after the first call."""
        return self.working or self._expected

    @property
    def error(self) -> ErrorEstimate | None:
        """What is known of the error of `working`."""
        return None if self._found is None else self._found.error

    @property
    def due(self) -> bool:
        """Whether the next call is to judge a setting."""
        return self._found is None or self._fallback is not None or self._calls >= AUDIT

    def note_call(self) -> None:
        """Take note of a call that judged nothing."""
        self._calls += 1

    def extrapolates(self, error: ErrorEstimate, left: float) -> bool:
        """Whether the two of a pair together are the answer, and not the finer one by itself."""
        return self._share(error, left) < 1 and self._bound(error) > AIM * self._tol

    def accept(
        self, error: ErrorEstimate, change: float, costs: tuple[int, int], left: float = 1.0
    ) -> bool:
        """Take note of an error; whether the call may end.

        Args:
            error: of the finer of the pair; its gap is the change that steps twice as long would
                make.
            change: the relative change of the gradient between the two of a pair.
            costs: those of the coarser and of the finer solve.
            left: the share of the error that the two together leave. The call may end with what
                they say together where neither will do for later ones; the next one goes on.
        """
        bound = self._bound(error) if error.gap <= WIDEST_GAP else math.inf
        if bound > ENOUGH * self._tol:
            share = self._share(error, left)
            answered = self._fallback is None and share * bound <= self._tol
            self._refine(error, LATER_AIM if answered else min(CLOSE_AIM / share, LARGEST_AIM))
            if answered:
                self._expected, self._missed, self.stalled = self.finer, None, False
            return answered
        self._failures, self._missed = 0, None
        found, before = self._choose(error, change, costs), self._fallback
        if before is not None and found.cost >= before.cost:  # nothing is gained
            self._go_back(before)
            return True
        if before is not None and found.working.method != before.working.method:
            self.why += ", but fixed steps cost less"
        self._found, self._calls = found, 0
        if found.working != self.setting:
            self._too_coarse = self.setting
        self._try_less(found)
        return True

    def fail(self, further: float) -> None:
        """Take note of a solve that diverged, or whose steps were not stable.

        Args:
            further: so many times as many steps are tried next.
        """
        if not self._turns_away(unknown=True):
            self._missed = None
            self._judge(self.setting.with_steps(further))

    def _share(self, error: ErrorEstimate, left: float) -> float:
        """What extrapolation leaves of an error, if it has a leading term that is taken away.

        Where the velocity is affine it is that of modes which the long steps hardly keep stable;
        other terms count where solutions may oscillate.
        """
        leading = self._pilot.real_spectrum and not self._pilot.affine
        return left if leading and is_regular(self.finer, error) else 1.0

    def _bound(self, error: ErrorEstimate) -> float:
        """The error, with room for what its estimate may lack."""
        if self._pilot.real_spectrum:
            return _size(error)
        next_term = NEXT_TERM_OF_EULER if error.order == 1 else NEXT_TERM
        return (1 + next_term * error.gap) * _size(error)

    def _choose(self, error: ErrorEstimate, change: float, costs: tuple[int, int]) -> _Found:
        """What calls are to use: the coarser of a pair, if that meets the tolerance too."""
        if change + self._bound(error) > ENOUGH * self._tol:
            return _Found(self._pair, self.finer, error, costs[1])
        size = _size(error)
        own = scaled(error, (size + change) / size if size > 0 else 1.0)
        return _Found(self._pair, self.setting, own, costs[0])

    def _judge(self, setting: Setting, finer: Setting | None = None) -> None:
        """What is judged next."""
        self.setting, self.finer = setting, finer or setting.partner

    @property
    def _pair(self) -> tuple[Setting, Setting]:
        return self.setting, self.finer

    @property
    def _fallback(self) -> _Found | None:
        """What is known to do while another pair is tried; None if none is."""
        tried = self._found is not None and self._found.pair != self._pair
        return self._found if tried else None

    def _go_back(self, before: _Found) -> None:
        """To what is known to do, from a pair that was tried in vain."""
        tried = self.setting
        self._judge(*before.pair)
        if tried.method == before.working.method:
            self._too_coarse = tried
        else:
            self._relax(before)

    def _try_less(self, found: _Found) -> None:
        """Try fixed steps the next time if that may be cheaper, once, or else a coarser setting."""
        other, self._other = self._other, None
        if other is not None and other.cost < found.cost:
            self._judge(other)
        else:
            self._relax(found)

    def _relax(self, found: _Found) -> None:
        """Try less the next time if the error is much smaller than it needs to be."""
        working, known = found.working, self._too_coarse
        proposals = [
            working.finer(max(_size(found.error) / (AIM * self._tol), 1 / LARGEST_LEAP)),
            coarsest(working.method, self._pilot.stiffness, self._tol),
        ]
        if known is not None and known.method == working.method:
            proposals.append(known.with_steps(APART))
        proposal = max(proposals, key=lambda found: found.fineness)
        if proposal.fineness < working.with_steps(WORTHWHILE).fineness:
            self._judge(proposal)

    def _refine(self, error: ErrorEstimate, aim: float) -> None:
        """Go on after an error that was too large."""
        known = error if is_clear(error) else None
        if self._turns_away(unknown=known is None):
            return
        self._notice(known)
        gain = math.inf if known is None else self._bound(known) / (aim * self._tol)
        stable = self.finer.steps is None and not self._pilot.affine
        further = FURTHER_IF_STABLE if stable else FURTHER
        self._judge(*pair_after(self.setting, self.finer, known, gain, further))

    def _turns_away(self, unknown: bool) -> bool:
        """Go back to what is known to do, or over to the stabilised solver; whether either suits.

        Args:
            unknown: whether nothing is known of the error of what was tried.
        """
        if self._fallback is not None:
            self._go_back(self._fallback)
            return True
        self._found = None
        self._failures += 1
        if not (unknown and self._can_stabilize()):
            return False
        self._judge(stabilized(self._pilot, self._tol))
        self.why = "fixed steps were unstable"
        return True

    def _notice(self, error: ErrorEstimate | None) -> None:
        """Compare an error that was too large with the one before, of a coarser setting.

        Only estimates that can be trusted say that rounding limits the error: steps that are far
        too long can have equal errors by chance.
        """
        before, size = self._missed, math.inf if error is None else _size(error)
        if error is None or not error.trusted:
            self._missed = None
        elif before is None or before[0].method != self.finer.method:
            self._missed = (self.finer, size)
        elif (self.finer.fineness / before[0].fineness) ** self.finer.power >= TELLING_GAIN:
            self._missed = (self.finer, size)
            self.stalled = size > 0.5 * before[1]

    def _can_stabilize(self) -> bool:
        """Whether the stabilised solver is to take over from steps that were too long."""
        pilot, fixed = self._pilot, self.setting.method in FIXED
        suits = pilot.stiffness > stiff_from(pilot, self._tol)
        return fixed and pilot.real_spectrum and (self._failures > PATIENCE or suits)


def _size(error: ErrorEstimate) -> float:
    """The larger of the errors w.r.t. params and hparams; infinite if it is not known."""
    size = max(error.params, error.hparams)
    return size if math.isfinite(size) else math.inf
