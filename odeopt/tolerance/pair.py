"""Two settings that are judged together: what their difference tells, and which two are next."""

from __future__ import annotations

from odeopt.gradient.result import ErrorEstimate
from odeopt.tolerance.setting import Setting

WIDEST_GAP = 0.43
"""A larger change of the gradient with steps twice as long says nothing about its error, and over
the order, how many more steps are needed."""

WIDEST_REGULAR_GAP = 0.2
"""Up to this the error consists of its leading term, for the most part, where the order is one
(steps are hardly stable beyond) or steps are chosen; a larger one falls faster than that term."""

LARGEST_GAIN, LARGEST_JUMP = 1e3, 1.9
"""By how much the error is to fall from one setting to a finer one; and after such a change."""

FURTHER, FURTHER_IF_STABLE = 1.3, 1.15
"""So many times as many steps are tried where an error is not known; and where all were stable, so
that it is the coarser solve that was off (not where the velocity is affine: of few long steps two
solves that are near may agree by chance there)."""


def is_clear(error: ErrorEstimate) -> bool:
    """Whether an error tells how many more steps are needed."""
    return error.gap <= WIDEST_GAP / error.order


def is_regular(setting: Setting, error: ErrorEstimate) -> bool:
    """Whether an error consists of its leading term, for the most part."""
    first = setting.steps is None or error.order == 1
    return error.gap <= (WIDEST_REGULAR_GAP if first else WIDEST_GAP)


def pair_after(
    setting: Setting, finer: Setting, error: ErrorEstimate | None, gain: float, further: float
) -> tuple[Setting, Setting]:
    """What is to be judged after an error that was too large, or is not known.

    That is the solve that is wanted, beside the finer of the pair, or the coarser one if the
    finer is too near.

    Args:
        setting: the coarser one.
        finer: the other one.
        error: that of the finer one; None if it is not known.
        gain: by how much it is too large.
        further: so many times as many steps are wanted if the error is not known.
    """
    if error is None:
        wanted = finer.with_steps(further)
    else:
        most = LARGEST_GAIN if error.gap <= WIDEST_REGULAR_GAP else LARGEST_JUMP
        wanted = finer.finer(min(gain, most))
    if wanted.fineness <= finer.fineness:  # as fine as anything that is tried
        return finer, finer.partner
    near = error is not None and wanted.fineness < finer.partner.fineness
    return setting if near else finer, wanted
