"""Which setting meets a tolerance for the least cost, found by measuring.

The first call over a horizon takes the solver that needs to know nothing, the one that chooses its
steps, in pairs of solves that get finer until one meets the tolerance. While later calls go by,
each method that could be cheaper is measured in the same way, one pair a call, and the cheapest
that meets the tolerance is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from odeopt.gradient.error_estimate import scaled
from odeopt.gradient.result import ErrorEstimate
from odeopt.tolerance.setting import FIXED, Setting

ENOUGH, AIM = 0.8, 0.75
"""The shares of the tolerance that an estimate may be, and that the next setting aims at."""

WORTHWHILE, FIRST = 0.95, 0.8
"""A setting is measured if it costs less than this share of what is used; a method that is new is
tried at that share of it."""

TELLING = 0.4
"""A larger relative error does not say how many more steps are needed: somewhat more are tried."""

SOMEWHAT, FURTHEST = 1.3, 1e3
"""That many times as many; and the largest factor by which one error calls for a finer setting."""

COARSER, COARSER_TOLERANCE = 0.5, 0.1
"""By how much a setting gets coarser at once, at most: of fixed steps, and of chosen ones."""

AUDIT = 20
"""One in so many calls estimates the error of the setting that is used."""


class Pair(NamedTuple):
    """Two solves by one method, with what their difference says.

    Attributes:
        coarse, fine: the settings.
        error: that of the finer one.
        change: the relative change of the gradient between the two.
        costs: gradients and Hessian-vector products of the two.
    """

    coarse: Setting
    fine: Setting
    error: ErrorEstimate
    change: float
    costs: tuple[int, int]


class Measured(NamedTuple):
    """A setting that meets the tolerance, with its error and its cost."""

    setting: Setting
    error: ErrorEstimate
    cost: int


@dataclass
class _Candidate:
    """What is known of a method.

    Attributes:
        fineness: of the setting that is measured next; None before the first.
        too_coarse: the finest setting that did not meet the tolerance.
        tried: what was measured already.
    """

    fineness: float | None = None
    too_coarse: float = 0.0
    tried: set[float] = field(default_factory=set[float])


class Search:
    """What is known of solves over one horizon.

    Args:
        tol: the tolerance.
        robust: the method that chooses its steps, with which the first call begins.
        fixed: the methods with fixed steps.
    """

    def __init__(self, tol: float, robust: str, fixed: Iterable[str]) -> None:
        self._tol, self._robust, self._fixed = tol, robust, tuple(fixed)
        self.restart()

    def restart(self) -> None:
        """Forget what was measured."""
        self.working: Measured | None = None
        self.measured: dict[str, Measured] = {}
        self._candidates = {name: _Candidate() for name in (*self._fixed, self._robust)}
        self._calls = 0

    @property
    def first(self) -> Setting:
        """The coarser setting of the first pair."""
        return Setting(self._robust, 1 / self._tol)

    @property
    def due(self) -> bool:
        """Whether the error of the setting that is used is to be estimated again."""
        return self._calls >= AUDIT

    def count(self) -> None:
        """Take note of a call with the setting that is used."""
        self._calls += 1

    def meets(self, error: float) -> bool:
        """Whether an estimate is small enough for a setting to be kept."""
        return error <= ENOUGH * self._tol

    def audit(self, error: ErrorEstimate) -> bool:
        """Take note of a new estimate for the setting in use; whether it still does."""
        self._calls = 0
        return size(error) <= self._tol

    def accept(self, pair: Pair) -> None:
        """Use what a pair has shown to meet the tolerance, and plan what to measure next."""
        kept = self._better_of(pair)
        method = kept.setting.method
        if kept.setting != pair.coarse:
            self._note_too_coarse(pair.coarse)
        if method not in self.measured or kept.cost < self.measured[method].cost:
            self.measured[method] = kept
        if self.working is None or kept.cost < self.working.cost:
            self.working, self._calls = kept, 0
        self._plan(kept.setting, size(kept.error))

    def reject(self, setting: Setting, error: float = math.inf) -> None:
        """Take note of a setting that does not meet the tolerance; its error may be infinite."""
        self._note_too_coarse(setting)
        self._plan(setting, error)

    def finer(self, setting: Setting, error: float) -> Setting:
        """What is expected to meet the tolerance, after an error that was too large.

        Where the error is not known it is the partner, which is a little finer.
        """
        if not math.isfinite(error):
            return setting.partner(1)
        gain = min(error / (AIM * self._tol), FURTHEST)
        return setting.at(setting.fineness * max(gain ** (1 / setting.power), SOMEWHAT))

    def proposal(self) -> Setting | None:
        """The coarser setting of the pair that is measured next; None if nothing is to be gained.

        Its own method is made cheaper first, then the methods whose next setting costs least.
        """
        assert self.working is not None, "there is one after the first call"
        settings = [
            self._next(name, known, self.working)
            for name, known in self._candidates.items()
            if known.fineness not in known.tried
        ]
        chosen = min(filter(None, settings), key=_cost, default=None)
        if chosen is not None:
            self._candidates[chosen.method].tried.add(chosen.fineness)
        return chosen

    def _next(self, name: str, known: _Candidate, working: Measured) -> Setting | None:
        """What is measured next of a method; None if it cannot be cheaper."""
        if name == self._robust:
            used, fineness = working.setting, known.fineness
            if fineness is None or used.method != name or fineness > COARSER * used.fineness:
                return None
            return used.at(fineness)
        solver = FIXED[name]
        fineness = known.fineness or math.floor(FIRST * working.cost / (2 * solver.stages))
        setting = Setting(name, float(max(1, fineness)))
        return setting if _cost(setting) <= WORTHWHILE * working.cost else None

    def _note_too_coarse(self, setting: Setting) -> None:
        known = self._candidates[setting.method]
        known.too_coarse = max(known.too_coarse, setting.fineness)

    def _plan(self, setting: Setting, error: float) -> None:
        """What is measured next of a method, after an error of one of its settings."""
        known, fineness = self._candidates[setting.method], setting.fineness
        if error > TELLING:
            wanted = SOMEWHAT * fineness
        else:
            wanted = fineness * (error / (AIM * self._tol)) ** (1 / setting.power)
        least = COARSER_TOLERANCE if setting.steps is None else COARSER
        wanted = max(wanted, least * fineness)
        if wanted <= known.too_coarse:
            wanted = math.sqrt(known.too_coarse * fineness)
        if fineness <= known.too_coarse:
            wanted = max(wanted, fineness + 1)
        known.fineness = setting.at(wanted).fineness

    def _better_of(self, pair: Pair) -> Measured:
        """The coarser of a pair if that meets the tolerance too, or else the finer one."""
        error = size(pair.error)
        own = error + pair.change
        if self.meets(own):
            factor = own / error if error > 0 else 1.0
            return Measured(pair.coarse, scaled(pair.error, factor), pair.costs[0])
        return Measured(pair.fine, pair.error, pair.costs[1])


def size(error: ErrorEstimate) -> float:
    """The larger of the errors w.r.t. params and hparams; infinite if it is not known."""
    larger = max(error.params, error.hparams)
    return larger if math.isfinite(larger) else math.inf


def _cost(setting: Setting) -> float:
    """Gradients and products of fixed steps; nothing is known of chosen ones, which come first."""
    solver = FIXED.get(setting.method)
    return 0.0 if solver is None else 2 * solver.stages * setting.fineness
