"""The spectral radius of the Jacobian on the way forward, by power iteration."""

from __future__ import annotations

import torch
from torch import Tensor

from odeopt.tools.types import Velocity

TOLERANCE = 0.05
"""Relative change at which an iteration ends; the solver raises the radius by more than this."""

LONGEST = 50
"""The most iterations."""

REFRESH = 10
"""After so many estimates some of a random vector is mixed in."""


class PowerIteration:
    r"""Estimates $\rho$ from $\lVert f(y + \epsilon v) - f(y)\rVert / \epsilon$, per task.

    The vector is carried from estimate to estimate, so that one or two gradients do where the
    Jacobian changes little. What it finds is a lower bound for symmetric Jacobians. Now and then
    a random vector is mixed in, without which a mode that grows past the others would be seen
    late.

    Args:
        velocity: `(t, y) -> dy/dt`, over all tasks.
        slope: the velocity at the initial state, the first vector together with a random one;
            shape [d] or [tasks, d].
    """

    def __init__(self, velocity: Velocity, slope: Tensor) -> None:
        self._velocity = velocity
        self._generator = torch.Generator().manual_seed(0)
        self._vector = torch.zeros_like(slope)
        self._estimates = 0
        self.renew(slope)

    def renew(self, hint: Tensor) -> None:
        """Mix a direction in which the radius may be large, and a random one, into the vector."""
        draw = torch.randn(hint.shape[-1], generator=self._generator, dtype=hint.dtype)
        random = draw.to(hint.device).expand_as(hint)
        self._vector = unit(self._vector + 0.5 * unit(random) + unit(hint))

    def estimate(self, t: Tensor, y: Tensor, slope: Tensor, last: Tensor, wanted: Tensor) -> Tensor:
        """The radius at (t, y), shape [] or [tasks].

        Args:
            t: the time.
            y: the state.
            slope: the velocity there.
            last: the estimate before; an iteration ends where it does not change it.
            wanted: the tasks whose radius is asked for; others keep the last.
        """
        self._estimates += 1
        if self._estimates % REFRESH == 0:
            self.renew(torch.zeros_like(y))
        size = torch.linalg.vector_norm(y, dim=-1)
        length = torch.finfo(y.dtype).eps ** 0.5 * torch.where(size > 0, size, 1.0)
        settled, radius = ~wanted, last
        for _ in range(LONGEST):
            moved = self._velocity(t, y + length[..., None] * self._vector) - slope
            rate = (torch.linalg.vector_norm(moved, dim=-1) / length).to(last.dtype)
            usable = ~settled & (rate > 0) & torch.isfinite(rate)
            self._vector = torch.where(usable[..., None], unit(moved), self._vector)
            rate = torch.where(usable, rate, radius)
            settled = settled | ((rate - radius).abs() <= TOLERANCE * rate)
            radius = rate
            if bool(settled.all()):
                break
        return radius


def unit(vector: Tensor) -> Tensor:
    """Of length one; zero where it is zero or not finite."""
    size = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    usable = (size > 0) & torch.isfinite(size)
    return torch.where(usable, vector / torch.where(usable, size, 1.0), 0.0)
