"""The spectral radius of the Jacobian along the trajectory, by power iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odeopt.adjoint.base import Interval, LocalAdjoint
from odeopt.engine.backward import PullKernel
from odeopt.engine.kernels import Kernels
from odeopt.engine.pulled import Noted
from odeopt.solver.base import Solver
from odeopt.solver.dynamics import Data, Theta


class SpectralMonitor:
    r"""Estimates $h\rho$ over the stability limit at each pull; the vector is carried along.

    The estimate is a lower bound for symmetric Jacobians; for others it is the growth of a
    vector under the Jacobian, the size of its largest eigenvalue in the long run.
    """

    def __init__(self, kernel: Any, iterations: int, limit: Callable[[int], float]) -> None:
        self.ratios: list[Tensor] = []
        self._kernel = kernel
        self._iterations = iterations
        self._limit = limit
        self._vector: Tensor | None = None

    @classmethod
    def make(
        cls,
        kernels: Kernels,
        adjoint: LocalAdjoint,
        iterations: int,
        solver_at: Callable[[int], Solver],
    ) -> SpectralMonitor | None:
        """A monitor, or None when it is switched off or the limit is not known.

        `solver_at(k)` is what step k was made with.
        """
        if iterations == 0 or adjoint.stability_limit(kernels.solver) is None:
            return None

        def limit(k: int) -> float:
            found = adjoint.stability_limit(solver_at(k))
            assert found is not None, "the methods of a solver are alike"
            return found

        def kernel(t: Tensor, y: Tensor, v: Tensor, theta: Theta, data: Data) -> Tensor:
            stepping = kernels.stepping(adjoint.differentiation, theta, data)
            return stepping.linearize(t, y).pullback(v).y

        batched = kernels.batched(kernel)
        bound = lambda t, y, v: batched(t, y, v, kernels.theta, kernels.data)  # noqa: E731
        return cls(bound, iterations, limit)

    def watch(self, pull: PullKernel) -> PullKernel:
        """The pull, with an estimate before it."""

        def watched(k: int, interval: Interval, lam: Tensor) -> Noted:
            self.ratios.append(self._estimate(interval) / self._limit(k))
            return pull(k, interval, lam)

        return watched

    def _estimate(self, interval: Interval) -> Tensor:
        vector = _start_vector(interval.y0) if self._vector is None else self._vector
        radius = torch.zeros_like(interval.dt)
        for _ in range(self._iterations):
            image = self._kernel(interval.t, interval.y0, vector)
            radius = torch.linalg.vector_norm(image, dim=-1)
            tiny = torch.finfo(radius.dtype).tiny
            vector = image / (radius + tiny)[..., None]
        self._vector = vector
        return interval.dt * radius


def _start_vector(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(like.shape[-1], generator=generator, dtype=like.dtype).to(like.device)
    return (vector / torch.linalg.vector_norm(vector)).expand_as(like)
