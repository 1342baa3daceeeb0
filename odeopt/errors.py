"""Every error and warning of odeopt.

OdeoptError
    InputError               an argument has the wrong type, shape, dtype or value
        UnknownKeywordError  a keyword is given to what does not take it
    CompatibilityError       two choices do not work together
    CapturedTensorError      a loss or field uses a tensor that requires grad but is no argument
    NondeterminismError      evaluating or replaying the inner loop twice gives different numbers
    DivergenceError          a state, a value or an adjoint is not finite
    StabilityError           a step is too long, or interpolated states are too coarse
    StepLimitError           an adaptive solver needs more steps than it may take
    ToleranceError           no setting that was tried met the tolerance
    SecondOrderError         a second derivative through a solve was asked for
    StorageError             a kept state cannot be written, or is not what was written
    CompilationError         a compiled kernel is wrong, or cannot be made on this machine
    WorkerError              a worker is lost, or workers do not do the same
    UnknownNameError         a registry does not hold that name
OdeoptWarning                something works, but not as well as it could
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AllFailed(NamedTuple):
    """What is known of tasks that were to be skipped and all failed; both of shape [tasks]."""

    values: Tensor
    status: Tensor


class OdeoptError(Exception):
    """Base class of every error raised by odeopt.

    Attributes:
        all_failed: set where `on_failure="skip"` found no task that did not fail, so that a caller
            who has other tasks can go on without these.
    """

    all_failed: AllFailed | None = None


class InputError(OdeoptError, ValueError):
    """An argument has the wrong type, shape, dtype or value."""


class UnknownKeywordError(InputError, TypeError):
    """A keyword is given to a function or a class that does not take it."""


class CompatibilityError(OdeoptError, ValueError):
    """Two choices (field, solver, adjoint, checkpoints) do not work together."""


class CapturedTensorError(OdeoptError):
    """A function uses a tensor that requires grad without receiving it as an argument."""


class NondeterminismError(OdeoptError):
    """Evaluating or replaying the inner loop twice does not give the same numbers."""


class DivergenceError(OdeoptError, ArithmeticError):
    """A state, a value or an adjoint variable is not finite."""


class StabilityError(OdeoptError, ArithmeticError):
    """A step is beyond the stability limit, or interpolated states are too coarse."""


class StepLimitError(OdeoptError):
    """An adaptive solver would need more steps than it may take."""


class ToleranceError(OdeoptError):
    """No setting that was tried brought the error in the gradient below the tolerance."""


class SecondOrderError(OdeoptError, NotImplementedError):
    """A second derivative through a solve was asked for."""


class StorageError(OdeoptError, OSError):
    """A kept state cannot be written to disk or read back, or has changed there."""


class CompilationError(OdeoptError):
    """A compiled kernel gives other numbers than eager execution, or no compiler is there."""


class WorkerError(OdeoptError, RuntimeError):
    """A worker is lost, failed with an error that is not ours, or does not do what others do."""


class UnknownNameError(OdeoptError, KeyError):
    """A registry does not hold the name that was asked for."""

    def __str__(self) -> str:
        return str(self.args[0])


class OdeoptWarning(UserWarning):
    """Something works, but not as well as it could."""
