"""What a pull kernel returns: as few tensors as possible, for each costs time in every step."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from odeopt.adjoint.base import Pulled
from odeopt.solver.dynamics import Theta


class Scalars(NamedTuple):
    """The numbers that belong to one pull, or to many: all of one shape."""

    t: Tensor
    """The gradient w.r.t. the start of the interval."""
    dt: Tensor
    """The gradient w.r.t. its length."""
    step_ratio: Tensor
    """See `Diagnostics`."""
    defect: Tensor
    """See `Diagnostics`."""
    gap: Tensor
    """See `Diagnostics`."""
    norm: Tensor
    """Of lam at the start of the interval."""

    @classmethod
    def apart(cls, rows: Tensor) -> Self:
        """Out of a tensor of shape [..., 6]."""
        return cls(*rows.unbind(-1))


class Noted(NamedTuple):
    """A `Pulled` with its scalars in one tensor."""

    lam: Tensor
    theta: Theta
    scalars: Tensor
    """Shape [6], with tasks [tasks, 6]."""


def note(pulled: Pulled) -> Noted:
    """A pull of one task or of all, with the norm of its lam."""
    norm, zero = torch.linalg.vector_norm(pulled.lam, dim=-1), torch.zeros_like(pulled.dt)
    step_ratio, defect, gap = pulled.diagnostics
    gap = zero if gap is None else gap
    scalars = Scalars(pulled.t, pulled.dt, step_ratio, defect, gap, norm)
    return Noted(pulled.lam, pulled.theta, torch.stack(scalars, dim=-1))
