"""The one adapter to torchdiffeq."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import CompatibilityError, DivergenceError, InputError, UnknownKeywordError
from odeopt.registry import SOLVERS
from odeopt.solver.base import GridSolver
from odeopt.tools.keywords import keywords_of, unknown
from odeopt.tools.shown import shown
from odeopt.tools.types import Velocity

ORDERS = {
    "dopri8": 8, "dopri5": 5, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2,
    "euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4,
    "explicit_adams": 4, "implicit_adams": 4,
}  # fmt: skip
"""The torchdiffeq methods that can be used, with their orders."""

ADAPTIVE = frozenset(("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"))
"""Those that choose their own steps."""

SET_BY_ODEINT = frozenset(("func", "y0", "rtol", "atol"))
"""What `odeint` gives to its methods itself, so that it cannot be an option."""


class Torchdiffeq(GridSolver):
    """Any explicit method of torchdiffeq for $y' = f(t, y)$, as an oracle and as the paper uses it.

    Only states at grid times come back, so that exact adjoints, which need every step, do not
    apply. Tasks are stacked into one state and share their steps; they must share the grid.

    Cost: the velocity evaluations that torchdiffeq makes, which are counted in the stats.

    Args:
        method: a torchdiffeq method, e.g. "dopri5"; fixed-step ones take one step per interval.
        rtol: relative tolerance, of adaptive methods.
        atol: absolute tolerance.
        options: passed to torchdiffeq, e.g. `{"max_num_steps": 1000}`.

    Raises:
        InputError: if there is no such method, the method has no such option, or a tolerance is
            negative or not finite.
        CompatibilityError: in the solve, or with options at once, if torchdiffeq is not installed;
            from `ODEOptimizer`, with an adjoint that needs every step.
        DivergenceError: in the solve, if torchdiffeq gives up.

    References:
        Chen 2018, torchdiffeq.
    """

    def __init__(
        self,
        method: str = "dopri5",
        rtol: float = 1e-7,
        atol: float = 1e-9,
        options: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(method, str) or method not in ORDERS:  # pyright: ignore
            raise InputError(f"method is {shown(method)}; expected one of {', '.join(ORDERS)}.")
        self.method = method
        self.rtol, self.atol = _check_tolerance("rtol", rtol), _check_tolerance("atol", atol)
        self.options = _check_options(method, options)
        self.order = ORDERS[method]
        self.chooses_steps = method in ADAPTIVE

    @override
    def coarser(self, factor: float) -> Torchdiffeq:
        if not self.chooses_steps:
            return self
        return Torchdiffeq(self.method, factor * self.rtol, factor * self.atol, self.options)

    @override
    def solve(self, velocity: Velocity, times: Tensor, y0: Tensor) -> tuple[Tensor, int]:
        odeint = _odeint()
        evaluations = 0

        def counted(t: Tensor, y: Tensor) -> Tensor:
            nonlocal evaluations
            evaluations += 1
            return velocity(t, y)

        if times.numel() == 1:
            return y0[None], 0
        try:
            states = odeint(
                counted, y0, times,
                rtol=self.rtol, atol=self.atol, method=self.method, options=self.options,
            )  # fmt: skip
        except AssertionError as error:  # torchdiffeq asserts on underflow and on its limits
            raise DivergenceError(
                f"torchdiffeq's {self.method} gave up after {evaluations} evaluations: {error}."
                " Loosen rtol and atol, shorten the horizon, or look at the loss for values that"
                " are not finite."
            ) from error
        return states, evaluations


@final
@SOLVERS.register("dormand-prince")
class DormandPrince(Torchdiffeq):
    """Dormand-Prince 5(4) of torchdiffeq: the forward solver of the paper's Algorithm 2.

    Its dense output, of order 4, gives the states of $y' = f(t, y)$ at grid times nearly for
    nothing. It is `Torchdiffeq("dopri5", rtol, atol)`: see there for tasks.

    Cost: 6 gradients per attempted step.

    Args:
        rtol: relative tolerance of one step.
        atol: absolute tolerance of one step.

    Raises:
        OdeoptError: as `Torchdiffeq`.

    References:
        Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae"; Chen 2018,
        torchdiffeq.
    """

    def __init__(self, rtol: float = 1e-7, atol: float = 1e-9) -> None:
        super().__init__("dopri5", rtol, atol)


def _check_tolerance(name: str, value: float) -> float:
    """A tolerance, or a tensor of them, which torchdiffeq takes as well."""
    try:
        number = torch.as_tensor(value)
        valid = bool(((number >= 0) & number.isfinite()).all())
    except (TypeError, ValueError, RuntimeError):
        valid = False
    if not valid:
        raise InputError(f"{name} is {shown(value)}; expected a finite number of at least 0.")
    return value


def _check_options(method: str, options: object) -> dict[str, Any] | None:
    """The options, if the class for a method or one of its bases takes each by name.

    Their constructors hand on what they do not know, and warn of what is left.
    """
    if options is None:
        return None
    if not isinstance(options, Mapping):
        raise InputError(f"options is {shown(options)}; expected a dictionary, or None.")
    classes: dict[str, type[Any]] = _odeint().__globals__["SOLVERS"]  # where it looks methods up
    bases = classes[method].__mro__[:-1]
    names = {name for base in bases for name in keywords_of(base.__init__).names}
    known = sorted(names - SET_BY_ODEINT)
    wrong = [name for name in cast("Mapping[Any, Any]", options) if name not in known]
    if wrong:
        message = unknown("option", wrong, known)
        raise UnknownKeywordError(f"torchdiffeq's {method}: {message}")
    return dict(cast("Mapping[str, Any]", options))


def _odeint() -> Any:
    try:
        from torchdiffeq import odeint  # pyright: ignore[reportMissingTypeStubs]  # noqa: PLC0415
    except ImportError as error:
        raise CompatibilityError(
            "this solver needs torchdiffeq: run `pip install 'odeopt[torchdiffeq]'`."
        ) from error
    return odeint


SOLVERS.register("torchdiffeq", example=lambda: Torchdiffeq("bosh3"))(Torchdiffeq)
