"""Solvers: how an inner optimisation is run forward."""

from odeopt.solver.adaptive import Adaptive
from odeopt.solver.attempts import Attempt, Attempts, Evaluations, Point
from odeopt.solver.base import GridSolver, Solver, StepGradient, Stepping, StepSolver
from odeopt.solver.dynamics import Cotangents, Linearization, Theta, add_thetas, scale_theta
from odeopt.solver.error_control import ErrorControlled
from odeopt.solver.reached import Reached, reached
from odeopt.solver.runge_kutta import (
    RK4,
    Chebyshev2,
    Chebyshev3,
    Euler,
    ExplicitRungeKutta,
    Midpoint,
    ModifiedEuler,
)
from odeopt.solver.stabilized import StabilizedRK
from odeopt.solver.step_control import PIController, Tolerances
from odeopt.solver.tableau import BOGACKI_SHAMPINE, DORMAND_PRINCE, Tableau
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
