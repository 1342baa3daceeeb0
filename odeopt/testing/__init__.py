"""Conformance suites and closed-form problems for authors of plugins.

One line checks everything that is registered, your plugin's entries included:
`pytest --pyargs odeopt.testing`. The functions check a single instance.
"""

from odeopt.testing.adjoints import check_adjoint
from odeopt.testing.compiled import check_backend, check_compiled
from odeopt.testing.fields import check_field
from odeopt.testing.methods import check_method
from odeopt.testing.problems import Quadratic, relative_error, smooth_problem
from odeopt.testing.rules import check_rule
from odeopt.testing.schedules import check_schedule
from odeopt.testing.solvers import check_controller, check_solver
from odeopt.testing.streams import check_stream
from odeopt.testing.tiers import check_tier

__all__ = [
    "Quadratic",
    "check_adjoint",
    "check_backend",
    "check_compiled",
    "check_controller",
    "check_field",
    "check_method",
    "check_rule",
    "check_schedule",
    "check_solver",
    "check_stream",
    "check_tier",
    "relative_error",
    "smooth_problem",
]
