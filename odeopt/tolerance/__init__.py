"""Choices made from a tolerance for the error in the gradient."""

from odeopt.tolerance.optimizer import ToleranceOptimizer, from_tolerance

__all__ = ["ToleranceOptimizer", "from_tolerance"]
