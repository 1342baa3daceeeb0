"""What the tests of solvers share."""

from __future__ import annotations

import functools

import numpy as np
import torch
from scipy.integrate import solve_ivp

from odeopt import (
    RK4,
    ContinuousAdjoint,
    ODEOptimizer,
)


def turning(t, state, consts, hparams, batch):
    """Neither a gradient field nor autonomous; `batch` is the speed."""
    u, v = state.unbind(-1)
    wave = torch.sin(3 * t) + 1.2
    return batch * torch.stack([torch.tanh(v) * wave - u, -torch.sin(u) - 0.3 * v * t])


@functools.cache
def outside(speed, times):
    """States at `times`, by scipy's DOP853 with tight tolerances."""

    def rhs(t, y):
        args = torch.tensor(t), torch.from_numpy(y), (), None, torch.tensor(speed)
        return turning(*args).numpy()

    found = solve_ivp(
        rhs, (0, times[-1]), [0.8, -1.1], "DOP853", times, rtol=1e-13, atol=1e-14, max_step=0.05
    )
    return torch.from_numpy(np.ascontiguousarray(found.y.T))


def start(device):
    return torch.tensor([0.8, -1.1], device=device)


def optimizer(solver):
    """Torchdiffeq solvers cannot be replayed by the default adjoint."""
    return ODEOptimizer(turning, solver, ContinuousAdjoint(RK4()))


def final(solver, grid, device, speed=1.0):
    return optimizer(solver).solve(start(device), torch.tensor(speed, device=device), grid)
