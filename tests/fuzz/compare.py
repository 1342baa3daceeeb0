"""One composition through odeopt and through the reference."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

import odeopt

from .composition import Composition
from .expected import Numbers, expected
from .problem import make_problem
from .roads import found

TOLERANCE = 1e-9
"""Of the relative error in every number."""

APPROXIMATE = 1e-7
"""With DormandPrince, whose states are those of the flow up to its own tolerance of 1e-12."""

SMALLEST = 1e-3
"""Numbers whose norm is below it are compared absolutely, as a part of it."""


ALLOWED = (odeopt.CompatibilityError, odeopt.InputError, odeopt.StabilityError)
"""What may be refused: choices, and steps too long for an approximate adjoint. That replays or
kernels differ, a state cannot be stored or something is captured is never the composition's fault.
"""

TORCH_FAILED = "Torch says:"
"""In messages on what torch cannot differentiate; the losses here hold nothing of the kind."""


class MismatchError(AssertionError):
    """Odeopt and the reference give different numbers."""


@dataclass(frozen=True)
class Outcome:
    """What became of a composition.

    Attributes:
        kind: "right", "refused" (see `ALLOWED`), "wrong", or "crashed" (by any other error).
        error: the largest relative error; nan where there are no numbers.
        reason: the class of the error, if one was raised.
        message: what it said.
    """

    kind: str
    error: float = float("nan")
    reason: str = ""
    message: str = ""

    @property
    def failed(self) -> bool:
        """Whether odeopt is to blame."""
        return self.kind in ("wrong", "crashed")


def check(c: Composition) -> float:
    """The largest relative error of a composition.

    Raises:
        MismatchError: if it is above the tolerance.
        OdeoptError: if odeopt refuses the composition.
    """
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        problem = make_problem(c)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", odeopt.OdeoptWarning)
            ours, steps = found(c, problem, Path(folder))
        theirs = expected(c, problem, steps)
    errors = {name: _error(*pair) for name, pair in _pairs(ours, theirs).items()}
    worst = max(errors, key=lambda name: errors[name])
    limit = APPROXIMATE if c.solver == "dormand-prince" else TOLERANCE
    if not errors[worst] <= limit:
        one, two = _pairs(ours, theirs)[worst]
        raise MismatchError(
            f"{', '.join(f'{name} {error:.1e}' for name, error in errors.items())} are the relative"
            f" errors; {worst}:\n  odeopt:    {one.tolist()}\n  reference: {two.tolist()}"
        )
    return errors[worst]


def outcome(c: Composition) -> Outcome:
    """What becomes of a composition; raises nothing."""
    try:
        return Outcome("right", check(c))
    except AssertionError as error:
        return Outcome("wrong", reason=type(error).__name__, message=str(error))
    except ALLOWED as error:
        kind = "crashed" if TORCH_FAILED in str(error) else "refused"
        return Outcome(kind, reason=type(error).__name__, message=str(error))
    except Exception as error:  # what is not odeopt's own is what we look for
        return Outcome("crashed", reason=type(error).__name__, message=str(error))


def _pairs(ours: Numbers, theirs: Numbers) -> dict[str, tuple[Tensor, Tensor]]:
    """What both say, by name."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for part in fields(ours):
        one, two = getattr(ours, part.name), getattr(theirs, part.name)
        if two is None:  # the reference has no formula for it
            continue
        if one is None:
            raise MismatchError(f"odeopt gives no {part.name}; the reference gives {two.tolist()}")
        found[part.name] = one.detach(), two.detach()
    return found


def _error(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise MismatchError(f"shapes {tuple(ours.shape)} and {tuple(theirs.shape)} differ")
    if ours.numel() == 0:
        return 0.0
    return float((ours - theirs).norm() / theirs.norm().clamp(min=SMALLEST))
