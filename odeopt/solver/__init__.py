"""Solvers: how an inner optimisation is run forward."""

from odeopt.solver.adaptive import Adaptive
from odeopt.solver.base import GridSolver, Solver, StepGradient, Stepping, StepSolver
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
from odeopt.solver.step_control import PIController
from odeopt.solver.tableau import BOGACKI_SHAMPINE, DORMAND_PRINCE, Tableau
from odeopt.solver.torchdiffeq import DormandPrince, Torchdiffeq

__all__ = [
    "BOGACKI_SHAMPINE",
    "DORMAND_PRINCE",
    "RK4",
    "Adaptive",
    "Chebyshev2",
    "Chebyshev3",
    "DormandPrince",
    "ErrorControlled",
    "Euler",
    "ExplicitRungeKutta",
    "GridSolver",
    "Midpoint",
    "ModifiedEuler",
    "PIController",
    "Reached",
    "Solver",
    "StabilizedRK",
    "StepGradient",
    "StepSolver",
    "Stepping",
    "Tableau",
    "Torchdiffeq",
    "reached",
]
