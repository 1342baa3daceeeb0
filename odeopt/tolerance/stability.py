r"""Whether steps of gradient descent were stable, by the states that they went through.

The velocity changes from one state to the next by at most $\rho$ times their distance. Steps of
gradient descent thus give a lower bound of $h\rho$ without any more evaluations, and one that is
sharp where they are too long: the states jump to and fro along the direction of largest curvature.
"""

from __future__ import annotations

import torch

from odeopt.engine.run import Run
from odeopt.errors import StabilityError
from odeopt.solver.runge_kutta import Euler

LIMIT = Euler().stability_limit

MARGIN, MOST = 1.25, 2.5
"""So many times as many steps as are stable where unstable ones have been are tried: elsewhere the
curvature may be larger. And at most so many times as many as there were."""

NOISE = 1e3
"""In units of the rounding error of a state: steps that are shorter tell nothing."""


class UnstableStepsError(StabilityError):
    """Steps of gradient descent were too long.

    Attributes:
        further: so many times as many are to be tried.
    """

    def __init__(self, stiffness: float) -> None:
        super().__init__(
            f"on the way steps of gradient descent had an h * rho of {stiffness:.3g} at least, but"
            f" they are stable up to {LIMIT:g}: make them shorter."
        )
        self.further = min(MARGIN * stiffness / LIMIT, MOST)


def refuse_unstable(run: Run) -> None:
    """Raise `UnstableStepsError` after a forward sweep of gradient descent that was not stable.

    Every state must have been kept.
    """
    found = stiffness(run)
    if found > LIMIT:
        raise UnstableStepsError(found)


def stiffness(run: Run) -> float:
    r"""$\max_k h_k \lVert v_{k+1} - v_k\rVert / \lVert h_k v_k\rVert$, at most over the tasks.

    Tasks that diverged are left out, which may be skipped, unless all did.
    """
    trajectory, y0 = run.trajectory, run.problem.y0
    dt = run.problem.grid.dt[..., None].to(y0.dtype)
    states = [trajectory.kept[k] for k in trajectory.kept.indices()] + [trajectory.y_end]
    noise = NOISE * torch.finfo(y0.dtype).eps
    worst = torch.zeros_like(y0[..., 0])
    for k, (before, here, after) in enumerate(zip(states, states[1:], states[2:], strict=False)):
        step = here - before
        turn = (after - here) * (dt[..., k, :] / dt[..., k + 1, :]) - step
        size = torch.linalg.vector_norm(step, dim=-1)
        ratio = torch.linalg.vector_norm(turn, dim=-1) / size
        tells = torch.isfinite(ratio) & (size > noise * torch.linalg.vector_norm(here, dim=-1))
        worst = torch.where(tells, torch.maximum(worst, ratio), worst)
    finite = torch.isfinite(trajectory.y_end).all(-1)
    return torch.where(finite | ~finite.any(), worst, 0.0).amax().item()
