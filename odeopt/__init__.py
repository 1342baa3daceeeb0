"""Differentiate through long inner optimisations, seen as ordinary differential equations."""

from odeopt.adjoint import (
    BacksolveAdjoint,
    ContinuousAdjoint,
    DiscreteAdjoint,
    FirstOrderAdjoint,
    ForwardOverReverse,
    ReverseMode,
    TruncatedAdjoint,
)
from odeopt.checkpoint import Binomial, Density, Every, Graded
from odeopt.errors import (
    CapturedTensorError,
    CompatibilityError,
    DivergenceError,
    InputError,
    NondeterminismError,
    OdeoptError,
    OdeoptWarning,
    SecondOrderError,
    StabilityError,
    StepLimitError,
    UnknownNameError,
)
from odeopt.field import Field, GradientField, GradientFlow, HeavyBall, RegularizedFlow
from odeopt.grid import TimeGrid
from odeopt.module import ModuleLoss, from_module
from odeopt.optimizer import ODEOptimizer
from odeopt.registry import ADJOINTS, CHECKPOINTS, FIELDS, SOLVERS
from odeopt.result import Grads, Result, Solution
from odeopt.safety import Safety, Status
from odeopt.solver import (
    RK4,
    Adaptive,
    DormandPrince,
    Euler,
    Midpoint,
    ModifiedEuler,
    PIController,
    Torchdiffeq,
)
from odeopt.stats import Stats

__version__ = "0.1.0"

__all__ = [
    "ADJOINTS",
    "CHECKPOINTS",
    "FIELDS",
    "RK4",
    "SOLVERS",
    "Adaptive",
    "BacksolveAdjoint",
    "Binomial",
    "CapturedTensorError",
    "CompatibilityError",
    "ContinuousAdjoint",
    "Density",
    "DiscreteAdjoint",
    "DivergenceError",
    "DormandPrince",
    "Euler",
    "Every",
    "Field",
    "FirstOrderAdjoint",
    "ForwardOverReverse",
    "Graded",
    "GradientField",
    "GradientFlow",
    "Grads",
    "HeavyBall",
    "InputError",
    "Midpoint",
    "ModifiedEuler",
    "ModuleLoss",
    "NondeterminismError",
    "ODEOptimizer",
    "OdeoptError",
    "OdeoptWarning",
    "PIController",
    "RegularizedFlow",
    "Result",
    "ReverseMode",
    "Safety",
    "SecondOrderError",
    "Solution",
    "StabilityError",
    "Stats",
    "Status",
    "StepLimitError",
    "TimeGrid",
    "Torchdiffeq",
    "TruncatedAdjoint",
    "UnknownNameError",
    "__version__",
    "from_module",
]
