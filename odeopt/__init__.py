"""Differentiate through long inner optimisations, seen as ordinary differential equations."""

from odeopt.adjoint import (
    BacksolveAdjoint,
    ConjugateGradient,
    ContinuousAdjoint,
    DiscreteAdjoint,
    FirstOrderAdjoint,
    ForwardOverReverse,
    ImplicitAdjoint,
    Neumann,
    ReverseMode,
    TruncatedAdjoint,
)
from odeopt.checkpoint import Binomial, Density, Every, Graded
from odeopt.errors import (
    CapturedTensorError,
    CompatibilityError,
    CompilationError,
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
from odeopt.meta import InnerLoop, MetaGradient, MetaGrads, Method, TaskBatch, TaskHorizon
from odeopt.module import ModuleLoss, from_module
from odeopt.optimizer import ODEOptimizer
from odeopt.registry import ADJOINTS, CHECKPOINTS, FIELDS, METHODS, SOLVERS
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
    "METHODS",
    "RK4",
    "SOLVERS",
    "Adaptive",
    "BacksolveAdjoint",
    "Binomial",
    "CapturedTensorError",
    "CompatibilityError",
    "CompilationError",
    "ConjugateGradient",
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
    "ImplicitAdjoint",
    "InnerLoop",
    "InputError",
    "MetaGradient",
    "MetaGrads",
    "Method",
    "Midpoint",
    "ModifiedEuler",
    "ModuleLoss",
    "Neumann",
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
    "TaskBatch",
    "TaskHorizon",
    "TimeGrid",
    "Torchdiffeq",
    "TruncatedAdjoint",
    "UnknownNameError",
    "__version__",
    "from_module",
]
