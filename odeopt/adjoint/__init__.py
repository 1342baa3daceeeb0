"""Adjoints: how a solve is differentiated backward."""

from odeopt.adjoint.backsolve import BacksolveAdjoint
from odeopt.adjoint.base import Adjoint, Interval, LocalAdjoint, Pulled, WholeAdjoint
from odeopt.adjoint.continuous import ContinuousAdjoint
from odeopt.adjoint.discrete import DiscreteAdjoint, TruncatedAdjoint
from odeopt.adjoint.first_order import FirstOrderAdjoint
from odeopt.adjoint.linearize import Differentiation, ForwardOverReverse, ReverseMode

__all__ = [
    "Adjoint",
    "BacksolveAdjoint",
    "ContinuousAdjoint",
    "Differentiation",
    "DiscreteAdjoint",
    "FirstOrderAdjoint",
    "ForwardOverReverse",
    "Interval",
    "LocalAdjoint",
    "Pulled",
    "ReverseMode",
    "TruncatedAdjoint",
    "WholeAdjoint",
]
