"""The spectral radius at the start, from a few products with the Jacobian."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from odeopt.solver.spectral_radius import unit


class Krylov:
    r"""Arnoldi's method on finite differences of the velocity, per task.

    From k products with the Jacobian J the restriction of J to
    $\mathrm{span}(v, Jv, \dots, J^{k-1}v)$ is known. It tells a lower bound of $\rho$ that is
    nearer than that of as many power iterations, and hardly ever stands still before it is there:
    the largest singular value of the restriction where J is symmetric, or else the size of the
    largest eigenvalue of its projection.

    Args:
        velocity: $f(y)$, over all tasks; shape [d] or [tasks, d].
        y: the state.
        slope: f(y), the first vector together with a random one.
        symmetric: whether J is.
    """

    def __init__(
        self, velocity: Callable[[Tensor], Tensor], y: Tensor, slope: Tensor, symmetric: bool
    ) -> None:
        self._velocity, self._y, self._slope, self._symmetric = velocity, y, slope, symmetric
        self._precision = torch.finfo(y.dtype).eps ** 0.5
        size = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        self._length = self._precision * torch.where(size > 0, size, 1.0)
        draw = torch.randn(y.shape[-1], generator=torch.Generator().manual_seed(0), dtype=y.dtype)
        self._basis = [unit(unit(slope) + 0.5 * unit(draw.to(y.device)))]
        self._columns: list[Tensor] = []

    def extend(self) -> Tensor:
        r"""One more product, a gradient; what it tells of $\rho$, shape [] or [tasks]."""
        moved = self._velocity(self._y + self._length * self._basis[-1]) - self._slope
        image = rest = moved / self._length
        column: list[Tensor] = []
        for vector in self._basis:
            share = (vector * rest).sum(-1, keepdim=True)
            rest = rest - share * vector
            column.append(share)
        size = torch.linalg.vector_norm(rest, dim=-1, keepdim=True)
        noise = 10 * self._precision * torch.linalg.vector_norm(image, dim=-1, keepdim=True)
        size = torch.where(size > noise, size, 0.0)
        self._columns.append(torch.cat([*column, size], dim=-1))
        self._basis.append(torch.where(size > 0, unit(rest), 0.0))
        return self._radius()

    def _radius(self) -> Tensor:
        count = len(self._columns)
        rows = [pad(column, (0, count + 1 - column.shape[-1])) for column in self._columns]
        known = torch.stack(rows, dim=-1).to("cpu", torch.float64)
        known = torch.where(torch.isfinite(known).all(-1, True).all(-2, True), known, 0.0)
        if self._symmetric:
            found = torch.linalg.svdvals(known)
        else:
            found = torch.linalg.eigvals(known[..., :count, :]).abs()
        return found.amax(-1).to(self._y)
