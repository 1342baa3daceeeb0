"""The gradient of the minimiser itself, whatever path led to it."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.adjoint.base import Cost, Sweep, Swept, WholeAdjoint
from odeopt.adjoint.linearize import Differentiation, check_differentiation
from odeopt.errors import CompatibilityError, InputError, OdeoptWarning
from odeopt.registry import ADJOINTS
from odeopt.solver.base import Stepping
from odeopt.solver.dynamics import Theta
from odeopt.tools.arguments import check_integer
from odeopt.tools.keywords import KnownKeywords
from odeopt.tools.shown import shown

MatVec = Callable[[Tensor], Tensor]


class LinearSolver(KnownKeywords, ABC):
    """A fixed number of products with a symmetric matrix, so that tasks can be batched."""

    steps: int
    """Products with the matrix."""

    @abstractmethod
    def solve(self, matvec: MatVec, b: Tensor) -> Tensor:
        """An approximate solution of A v = b; vectors have shape [d]."""


@final
@dataclass(frozen=True)
class ConjugateGradient(LinearSolver):
    """Conjugate gradients for $A v = b$ from v = 0; A must be positive definite.

    It stays where it is once the residual is zero, or when a direction of non-positive curvature
    turns up (the residual then tells that A is not positive definite).

    Cost: one product with A per iteration, and four vectors of shape [d].

    Args:
        steps: iterations.

    Raises:
        InputError: if steps is not a positive integer.

    References:
        Hestenes and Stiefel 1952, "Methods of conjugate gradients for solving linear systems".
    """

    steps: int = 5

    def __post_init__(self) -> None:
        check_integer(self.steps, "steps")

    @override
    def solve(self, matvec: MatVec, b: Tensor) -> Tensor:
        v, residual, direction = torch.zeros_like(b), b, b
        for _ in range(self.steps):
            image = matvec(direction)
            curvature, before = torch.dot(direction, image), torch.dot(residual, residual)
            length = _quotient(before, curvature)
            v = v + length * direction
            residual = residual - length * image
            share = _quotient(torch.dot(residual, residual), before)
            direction = residual + share * direction
        return v


@final
@dataclass(frozen=True)
class Neumann(LinearSolver):
    r"""The truncated series $v = \eta\sum_{i<K} (I - \eta A)^i b$, which needs $\eta < 2/\rho(A)$.

    Cost: K products with A, and two vectors of shape [d].

    Args:
        steps: K, the number of terms.
        rate: $\eta$.

    Raises:
        InputError: if steps is not a positive integer, or rate is not positive.

    References:
        Lorraine et al. 2020, "Optimizing Millions of Hyperparameters by Implicit Differentiation".
    """

    steps: int
    rate: float

    def __post_init__(self) -> None:
        check_integer(self.steps, "steps")
        if isinstance(self.rate, bool) or not self.rate > 0:
            raise InputError(f"rate is {shown(self.rate)}; expected a positive number.")

    @override
    def solve(self, matvec: MatVec, b: Tensor) -> Tensor:
        v = torch.zeros_like(b)
        for _ in range(self.steps):
            v = v + self.rate * (b - matvec(v))
        return v


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Numerator over denominator where that is positive, else 0."""
    allowed = denominator > 0
    safe = torch.where(allowed, denominator, torch.ones_like(denominator))
    return torch.where(allowed, numerator / safe, torch.zeros_like(numerator))


class _Implicit(NamedTuple):
    theta: Theta
    residual: Tensor
    stationarity: Tensor
    norm: Tensor


@final
@ADJOINTS.register("implicit", example=lambda: ImplicitAdjoint(stationarity=None))
class ImplicitAdjoint(WholeAdjoint):
    r"""Differentiates the condition $\nabla\Phi(\varphi) = 0$ at the final state $\varphi$.

    With $v = (\nabla^2\Phi(\varphi) + \delta I)^{-1}\lambda_T$ the gradient w.r.t. an input
    $\theta$ of the potential is $-(\partial_\theta\nabla\Phi)^\top v$; for `RegularizedFlow` and
    its centre that is $\mu v$. The initial state has no influence on a minimiser, so gradients
    flow through the centre and hparams only, and plain `GradientFlow` gives no gradient w.r.t.
    params. The step sizes get none. It is right only where the inner problem has converged.

    `Result.diagnostics` reports `"residual"`, $\lVert\lambda_T - Av\rVert / \lVert\lambda_T\rVert$
    of the linear system, and `"stationarity"`, $\lVert\nabla\Phi(\varphi)\rVert /
    \lVert\nabla\Phi(u_0)\rVert$. No state but the last is kept. Cost: one Hessian-vector product
    per step of the linear solver, and one more; two gradients.

    Args:
        linear_solver: `ConjugateGradient(5)` by default, or `Neumann(steps, rate)`.
        damping: $\delta$, added to the Hessian.
        stationarity: warn when the stationarity of a task is above this; None to be silent.
        differentiation: how Hessian-vector products are made, `ReverseMode()` by default.

    Warns:
        OdeoptWarning: if the inner problem has not converged.

    Raises:
        InputError: if the linear solver is none, or the damping is negative.
        CompatibilityError: in the gradient, if the field has no potential, or states are observed.

    References:
        Rajeswaran et al. 2019, "Meta-Learning with Implicit Gradients", Algorithm 2.
    """

    consistent = False
    path_dependent = False

    def __init__(
        self,
        linear_solver: LinearSolver | None = None,
        damping: float = 0.0,
        stationarity: float | None = 0.1,
        differentiation: Differentiation | None = None,
    ) -> None:
        self.linear_solver = ConjugateGradient() if linear_solver is None else linear_solver
        if not isinstance(self.linear_solver, LinearSolver):  # pyright: ignore
            raise InputError(
                f"linear_solver is {shown(linear_solver)}; expected e.g."
                " ConjugateGradient(steps=5)."
            )
        if not damping >= 0:
            raise InputError(f"damping is {shown(damping)}; expected a number of at least 0.")
        self.damping, self.stationarity = damping, stationarity
        self.differentiation = check_differentiation(differentiation)

    @override
    def backward(self, sweep: Sweep, lam: Tensor) -> tuple[Swept, Cost]:
        between = set(sweep.cotangents) - {0}
        if between:
            raise CompatibilityError(
                f"ImplicitAdjoint got the gradient of an outer loss at step {min(between)}, but it"
                " knows no path: observe the first and the last state only."
            )
        times = sweep.times
        kernel = sweep.batched(self._kernel(sweep))
        pulled: _Implicit = kernel(
            times[..., 0], times[..., -1], sweep.y0, sweep.y_end, lam, sweep.theta, sweep.data
        )
        self._warn(pulled.stationarity)
        zero = torch.zeros_like(times[..., 1:])
        start = sweep.cotangents.get(0, torch.zeros_like(lam))
        reports = {"residual": pulled.residual, "stationarity": pulled.stationarity}
        nothing = torch.zeros_like(pulled.norm)
        swept = Swept(start, zero, zero, pulled.theta, pulled.norm, nothing, reports)
        return swept, Cost(gradients=1, hvps=self.linear_solver.steps + 1)

    def _kernel(self, sweep: Sweep) -> Any:
        def kernel(
            t0: Tensor, t: Tensor, y0: Tensor, y: Tensor, lam: Tensor, theta: Theta, data: Any
        ) -> _Implicit:
            stepping: Stepping = sweep.stepping(theta, data)
            if stepping.field.potential is None:
                raise CompatibilityError(
                    "ImplicitAdjoint needs a field with a scalar potential, such as"
                    " RegularizedFlow(loss, strength)."
                )
            point = stepping.linearize(t, y)

            def matvec(v: Tensor) -> Tensor:
                return self.damping * v - point.pullback(v).y

            v = self.linear_solver.solve(matvec, lam)
            pulled = point.pullback(v)
            residual = lam - (self.damping * v - pulled.y)
            scale = torch.linalg.vector_norm(lam)
            start = torch.linalg.vector_norm(stepping.velocity(t0, y0))
            return _Implicit(
                pulled.theta,
                _ratio(torch.linalg.vector_norm(residual), scale),
                _ratio(torch.linalg.vector_norm(point.value), start),
                _ratio(torch.linalg.vector_norm(v), scale),
            )

        return kernel

    def _warn(self, stationarity: Tensor) -> None:
        limit = self.stationarity
        if limit is None or not bool((stationarity > limit).any()):
            return
        warnings.warn(
            "the inner problem has not converged: the gradient norm fell to"
            f" {float(stationarity.max()):.1e} of its initial value only (limit {limit:g}), and"
            " ImplicitAdjoint differentiates its minimiser. Take more steps, raise the strength"
            " of the regulariser, or use DiscreteAdjoint(); ImplicitAdjoint(stationarity=None)"
            " silences this.",
            OdeoptWarning,
            stacklevel=2,
        )


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return numerator / denominator.clamp(min=torch.finfo(denominator.dtype).tiny)
