"""The linear test equation of appendix A of "Meta-Learning with Adjoint Methods".

Equation 11 is printed with x for t in its first term. The equation meant, which equation 12
solves, is `y' = -2t^3 - 2ty`. Every function is elementwise in y or y0.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def velocity(t: Tensor, y: Tensor) -> Tensor:
    """The right-hand side -2t^3 - 2ty; t is a 0-dim tensor."""
    return -2 * t**3 - 2 * t * y


def solution(t: Tensor, y0: Tensor) -> Tensor:
    """y(t) = 1 - t^2 + (y0 - 1) e^(-t^2), equation 12."""
    return 1 - t**2 + (y0 - 1) * torch.exp(-(t**2))


def loss(y: Tensor) -> Tensor:
    """L(y) = (y - 3)^6, equation 13."""
    return (y - 3) ** 6


def gradient(t_end: Tensor, y0: Tensor) -> Tensor:
    """dL(y(T))/dy0 = 6 (y(T) - 3)^5 e^(-T^2), equation 14."""
    return 6 * (solution(t_end, y0) - 3) ** 5 * torch.exp(-(t_end**2))


def initial_states(count: int, seed: int) -> Tensor:
    """Random y0 from U(0, 1), shape [count].

    The paper states no distribution; this one agrees with its table 4 at T = 0.5.
    """
    return torch.rand(count, generator=Generator().manual_seed(seed), dtype=torch.float64)
