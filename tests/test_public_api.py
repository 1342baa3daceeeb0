"""The names that odeopt exports."""

from __future__ import annotations

import inspect
import types

import pytest

import odeopt
from odeopt import errors

NAMES = [
    "ADJOINTS",
    "Adam",
    "AdamW",
    "Adaptive",
    "BacksolveAdjoint",
    "BilevelProblem",
    "Binomial",
    "CHECKPOINTS",
    "CapturedTensorError",
    "CompatibilityError",
    "CompilationError",
    "ConjugateGradient",
    "ContinuousAdjoint",
    "Density",
    "Device",
    "DiscreteAdjoint",
    "Disk",
    "DivergenceError",
    "DormandPrince",
    "ErrorEstimate",
    "Euler",
    "Every",
    "FIELDS",
    "Field",
    "FirstOrderAdjoint",
    "ForwardOverReverse",
    "Graded",
    "GradientField",
    "GradientFlow",
    "GradientRule",
    "Grads",
    "HeavyBall",
    "Host",
    "ImplicitAdjoint",
    "InnerLoop",
    "InputError",
    "LeafwiseRule",
    "LoopGrads",
    "LoopResult",
    "METHODS",
    "MemoryBudget",
    "MetaGradient",
    "MetaGrads",
    "MetaLearner",
    "Method",
    "Midpoint",
    "Minimized",
    "ModifiedEuler",
    "ModuleLoss",
    "Neumann",
    "NondeterminismError",
    "ODEOptimizer",
    "OdeoptError",
    "OdeoptWarning",
    "Online",
    "PIController",
    "Plan",
    "RK4",
    "RMSprop",
    "RecordedLoop",
    "RegularizedFlow",
    "Result",
    "ReverseMode",
    "SGD",
    "SOLVERS",
    "Safety",
    "SecondOrderError",
    "Solution",
    "StabilityError",
    "StabilizedRK",
    "Stats",
    "Status",
    "Step",
    "StepLimitError",
    "StopWhen",
    "StorageError",
    "Stream",
    "TaskBatch",
    "TaskHorizon",
    "TaskPool",
    "TimeGrid",
    "ToleranceError",
    "ToleranceOptimizer",
    "Torchdiffeq",
    "TruncatedAdjoint",
    "UnknownNameError",
    "UpdateRule",
    "WorkerError",
    "Workers",
    "__version__",
    "clip_by_norm",
    "clip_by_value",
    "from_module",
    "from_tolerance",
    "spread",
    "tensorboard",
]
OBJECTS = [getattr(odeopt, name) for name in NAMES if name != "__version__"]
PUBLIC = [entry for entry in OBJECTS if inspect.isclass(entry) or inspect.isfunction(entry)]
CLASSES = [entry for entry in PUBLIC if inspect.isclass(entry)]
ERRORS = [
    entry
    for entry in vars(errors).values()
    if inspect.isclass(entry)
    and issubclass(entry, Exception)
    and entry.__module__ == "odeopt.errors"
]


def _name(entry):
    return getattr(entry, "__name__", str(entry))


def _module(member):
    return getattr(member, "__module__", None) or ""


def test_the_exported_names():
    assert sorted(odeopt.__all__) == NAMES


def test_each_name_is_there_once():
    assert len(set(odeopt.__all__)) == len(odeopt.__all__)
    assert all(hasattr(odeopt, name) for name in odeopt.__all__)


def test_nothing_else_public_is_visible():
    visible = {
        name
        for name, value in vars(odeopt).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert visible == set(odeopt.__all__) - {"__version__"}


def test_the_version_is_a_release_number():
    assert all(part.isdigit() for part in odeopt.__version__.split(".")[:2])


@pytest.mark.parametrize("entry", PUBLIC, ids=_name)
def test_each_export_has_a_docstring_of_its_own(entry):
    doc = entry.__dict__.get("__doc__") if inspect.isclass(entry) else entry.__doc__
    assert doc
    assert doc.strip()
    assert not doc.startswith(f"{entry.__name__}(")  # what a dataclass writes itself


@pytest.mark.parametrize("entry", CLASSES, ids=_name)
def test_each_public_method_has_a_docstring(entry):
    methods = [
        (name, member)
        for name, member in inspect.getmembers(entry, inspect.isroutine)
        if not name.startswith("_") and _module(member).startswith("odeopt")
    ]
    assert [name for name, member in methods if not inspect.getdoc(member)] == []


@pytest.mark.parametrize("entry", ERRORS, ids=_name)
def test_each_error_is_an_odeopt_error_and_exported(entry):
    expected = Warning if entry.__name__.endswith("Warning") else odeopt.OdeoptError
    assert issubclass(entry, expected)
    assert getattr(odeopt, entry.__name__) is entry


@pytest.mark.parametrize(("error", "builtin"), [
    (odeopt.InputError, ValueError), (odeopt.CompatibilityError, ValueError),
    (odeopt.DivergenceError, ArithmeticError), (odeopt.StabilityError, ArithmeticError),
    (odeopt.SecondOrderError, NotImplementedError), (odeopt.UnknownNameError, KeyError),
])  # fmt: skip
def test_errors_can_be_caught_as_their_built_in_kind(error, builtin):
    assert issubclass(error, builtin)


def test_the_module_docstring_of_errors_lists_each_of_them():
    assert all(entry.__name__ in errors.__doc__ for entry in ERRORS)
