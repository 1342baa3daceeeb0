"""Cubic Hermite interpolation of states."""

from __future__ import annotations

import torch
from torch import Tensor

from odeopt.adjoint.base import Interval

INTERPOLATION_ORDER = 4
"""The order of its error in the length of the interval."""


def hermite(interval: Interval, f0: Tensor, f1: Tensor, position: float) -> Tensor:
    r"""The state at $t_0 + \theta h$ from the states and velocities at both ends; shape [d].

    $\tilde y = (1-\theta) y_0 + \theta y_1 + \theta(\theta-1)
    [(1-2\theta)(y_1-y_0) + (\theta-1) h f_0 + \theta h f_1]$, with an error of
    $h^4 \lVert y''''\rVert / 384$.
    """
    theta = position
    change = interval.y1 - interval.y0
    bump = (1 - 2 * theta) * change + ((theta - 1) * interval.dt) * f0 + (theta * interval.dt) * f1
    return interval.y0 + theta * change + (theta * (theta - 1)) * bump


def midpoint_defect(interval: Interval, f0: Tensor, f1: Tensor, f_middle: Tensor) -> Tensor:
    r"""$h\lVert\tilde y'(\tfrac12) - f(\tilde y(\tfrac12))\rVert / \lVert y_1 - y_0\rVert$; 0-dim.

    About $z^4/480$ for a mode that decays at rate $\rho$ with $z = h\rho$: 0.002 at z = 1, 0.4 at
    z = 4 and 1.5 at z = 6.
    """
    change = interval.y1 - interval.y0
    slope = 1.5 * change - (0.25 * interval.dt) * (f0 + f1)
    rounding = torch.finfo(change.dtype).eps ** 0.5
    moved = torch.linalg.vector_norm(change) + rounding * torch.linalg.vector_norm(interval.y1)
    return torch.linalg.vector_norm(slope - interval.dt * f_middle) / (
        moved + torch.finfo(change.dtype).tiny
    )
