"""A differential fuzz test: random compositions of odeopt against unrolled float64 autograd."""

from .compare import MismatchError, Outcome, check, outcome
from .composition import Composition, draw

__all__ = ["Composition", "MismatchError", "Outcome", "check", "draw", "outcome"]
