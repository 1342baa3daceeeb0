"""Adjoints: how a solve is differentiated backward."""

from odeopt.adjoint.backsolve import BacksolveAdjoint
from odeopt.adjoint.base import (
    Adjoint,
    Cost,
    Diagnostics,
    Interval,
    LocalAdjoint,
    Pulled,
    Sweep,
    Swept,
    WholeAdjoint,
)
from odeopt.adjoint.continuous import ContinuousAdjoint
from odeopt.adjoint.discrete import DiscreteAdjoint, FirstOrderAdjoint, TruncatedAdjoint
from odeopt.adjoint.implicit import ConjugateGradient, ImplicitAdjoint, LinearSolver, Neumann
from odeopt.adjoint.linearize import Differentiation, ForwardOverReverse, ReverseMode

__all__ = [
    "Adjoint",
    "BacksolveAdjoint",
    "ConjugateGradient",
    "ContinuousAdjoint",
    "Cost",
    "Diagnostics",
    "Differentiation",
    "DiscreteAdjoint",
    "FirstOrderAdjoint",
    "ForwardOverReverse",
    "ImplicitAdjoint",
    "Interval",
    "LinearSolver",
    "LocalAdjoint",
    "Neumann",
    "Pulled",
    "ReverseMode",
    "Sweep",
    "Swept",
    "TruncatedAdjoint",
    "WholeAdjoint",
]
