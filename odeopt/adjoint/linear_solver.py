"""Solving A v = b with products A v only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import InputError
from odeopt.tools.keywords import KnownKeywords

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
        check_steps(self.steps)

    @override
    def solve(self, matvec: MatVec, b: Tensor) -> Tensor:
        v, residual, direction = torch.zeros_like(b), b, b
        for _ in range(self.steps):
            image = matvec(direction)
            curvature, before = torch.dot(direction, image), torch.dot(residual, residual)
            length = quotient(before, curvature, curvature > 0)
            v = v + length * direction
            residual = residual - length * image
            share = quotient(torch.dot(residual, residual), before, before > 0)
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
        check_steps(self.steps)
        if isinstance(self.rate, bool) or not self.rate > 0:
            raise InputError(f"rate is {self.rate!r}; expected a positive number.")

    @override
    def solve(self, matvec: MatVec, b: Tensor) -> Tensor:
        v = torch.zeros_like(b)
        for _ in range(self.steps):
            v = v + self.rate * (b - matvec(v))
        return v


def check_steps(value: object) -> int:
    """The value, if it is a positive integer; else `InputError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"steps is {value!r}; expected a positive integer.")
    return value


def quotient(numerator: Tensor, denominator: Tensor, allowed: Tensor) -> Tensor:
    """Numerator over denominator where that is allowed, else 0."""
    safe = torch.where(allowed, denominator, torch.ones_like(denominator))
    return torch.where(allowed, numerator / safe, torch.zeros_like(numerator))
