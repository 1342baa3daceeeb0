"""Steps of zero length, with which a task waits for others: the identity, whatever the field."""

from __future__ import annotations

import torch
from torch import Tensor

from odeopt.adjoint.base import Pulled
from odeopt.theta import Theta


def has_zero(dt: Tensor) -> bool:
    """Whether a step may have zero length (True where a transform hides the values)."""
    try:
        return bool((dt == 0).any())
    except RuntimeError:
        return True


def keep_frozen(dt: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The state before a step of zero length, the state after any other."""
    return torch.where((dt == 0)[..., None], before, after)


def freeze(dt: Tensor, lam: Tensor, pulled: Pulled) -> Pulled:
    """The pull over an interval; nothing but lam itself where its length is zero.

    The gradient w.r.t. such a length is kept where it is finite.
    """
    theta = Theta(*(tuple(_zero_frozen(dt, leaf) for leaf in part) for part in pulled.theta))
    zero = torch.zeros_like(dt)
    undefined = (dt == 0) & ~torch.isfinite(pulled.dt)
    pulled = pulled._replace(dt=torch.where(undefined, zero, pulled.dt))
    return pulled._replace(
        lam=keep_frozen(dt, lam, pulled.lam), t=torch.where(dt == 0, zero, pulled.t), theta=theta
    )


def _zero_frozen(dt: Tensor, leaf: Tensor) -> Tensor:
    """A gradient, with zero for tasks whose interval has zero length."""
    mask = (dt == 0).reshape(dt.shape + (1,) * (leaf.ndim - dt.ndim))
    return torch.where(mask, torch.zeros_like(leaf), leaf)
