"""A differential fuzz test: random compositions of odeopt against unrolled float64 autograd.

Left out, since other tests compare them with references of their own: compilation by inductor
(seconds per kernel; "trace" runs the same graphs), solves that are resumed or distributed,
recorded loops of modules, and meta-learning methods.
"""

from .compare import MismatchError, Outcome, check, outcome
from .composition import Composition, draw

__all__ = ["Composition", "MismatchError", "Outcome", "check", "draw", "outcome"]
