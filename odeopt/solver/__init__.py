"""Solvers: how an inner optimisation is run forward."""

from odeopt.solver.base import (
    GridSolver,
    Reached,
    RecordedStep,
    Solver,
    StepGradient,
    Stepping,
    StepSolver,
    reached,
)
from odeopt.solver.dynamics import Cotangents, Linearization, Theta, add_thetas, scale_theta
from odeopt.solver.error_control import (
    Attempt,
    Attempts,
    ErrorControlled,
    Evaluations,
    PIController,
    Point,
    Tolerances,
)
from odeopt.solver.runge_kutta import (
    BOGACKI_SHAMPINE,
    DORMAND_PRINCE,
    RK4,
    Adaptive,
    Chebyshev2,
    Chebyshev3,
    Euler,
    ExplicitRungeKutta,
    Midpoint,
    ModifiedEuler,
    Tableau,
)
from odeopt.solver.stabilized import StabilizedRK
from odeopt.solver.torchdiffeq import DormandPrince, Torchdiffeq

__all__ = [
    "BOGACKI_SHAMPINE",
    "DORMAND_PRINCE",
    "RK4",
    "Adaptive",
    "Attempt",
    "Attempts",
    "Chebyshev2",
    "Chebyshev3",
    "Cotangents",
    "DormandPrince",
    "ErrorControlled",
    "Euler",
    "Evaluations",
    "ExplicitRungeKutta",
    "GridSolver",
    "Linearization",
    "Midpoint",
    "ModifiedEuler",
    "PIController",
    "Point",
    "Reached",
    "RecordedStep",
    "Solver",
    "StabilizedRK",
    "StepGradient",
    "StepSolver",
    "Stepping",
    "Tableau",
    "Theta",
    "Tolerances",
    "Torchdiffeq",
    "add_thetas",
    "reached",
    "scale_theta",
]
