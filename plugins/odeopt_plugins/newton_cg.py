"""Hessian-free minimisation: Newton's method with conjugate gradients and a line search."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.adjoint.linear_solver import ConjugateGradient
from odeopt.solver import StepSolver
from odeopt.tools.types import Velocity


@final
class NewtonCG(StepSolver):
    r"""$u \leftarrow u + dt\,\alpha p$ with $\nabla^2\Phi(u)\,p \approx -\nabla\Phi(u)$.

    p comes from a few conjugate-gradient steps. $\alpha \in \{1, 1/2, 1/4, ...\}$ is the largest
    at which $\Phi$ still falls along p or is flat, so that a convex $\Phi$ decreases; 0 if there
    is none. A minimiser, not an integrator of the flow; for gradient fields only. Cost per step:
    `steps` Hessian-vector products and `halvings + 2` gradients.

    Args:
        steps: conjugate-gradient steps per direction.
        halvings: how often the step may be halved.

    References:
        Martens 2010, "Deep learning via Hessian-free optimization"; Nocedal and Wright 2006,
        section 7.1.
    """

    order = 1
    stability_limit = float("inf")

    def __init__(self, steps: int = 5, halvings: int = 10) -> None:
        self._solver = ConjugateGradient(steps)
        self._halvings = halvings
        self.stages = 1 + steps + halvings + 1

    @override
    def step(self, velocity: Velocity, t: Tensor, dt: Tensor, y: Tensor) -> Tensor:
        slope: Tensor
        slope, pullback = torch.func.vjp(lambda u: velocity(t, u), y)[:2]
        direction = self._solver.solve(lambda v: -pullback(v)[0], slope)
        return y + dt * self._length(velocity, t, y, direction, slope) * direction

    def _length(
        self, velocity: Velocity, t: Tensor, y: Tensor, direction: Tensor, slope: Tensor
    ) -> Tensor:
        start = torch.dot(slope, direction)
        flat = -(torch.finfo(start.dtype).eps ** 0.5) * start
        length = torch.zeros_like(start)
        for halving in reversed(range(self._halvings + 1)):
            trial = 0.5**halving
            found = torch.dot(velocity(t, y + trial * direction), direction)
            length = torch.where(found >= flat, torch.full_like(length, trial), length)
        return length
