r"""Whether steps of gradient descent were stable, by the states that they went through.

The velocity changes from one state to the next by at most $\rho$ times their distance. Steps of
gradient descent thus give a lower bound of $h\rho$ without any more evaluations, and one that is
sharp where they are too long: the states jump to and fro along the direction of largest curvature.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from odeopt.engine import Run
from odeopt.errors import StabilityError

LIMIT = 2.0
r"""The largest $h\rho$ with which gradient descent is stable."""

MARGIN, MOST = 1.25, 2.5
"""So many times as many steps as are stable where unstable ones have been are tried: elsewhere the
curvature may be larger. And at most so many times as many as there were."""


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

    Every state must have been kept. Tasks whose states are not finite are left to others.
    """
    found = stiffness(run)
    if found > LIMIT:
        raise UnstableStepsError(found)


def stiffness(run: Run) -> float:
    r"""$\max_k h_k \lVert v_{k+1} - v_k\rVert / \lVert h_k v_k\rVert$, at most over the tasks."""
    trajectory, dt = run.trajectory, run.problem.grid.dt[..., None].to(run.problem.y0.dtype)
    states = [trajectory.kept[k] for k in trajectory.kept.indices()] + [trajectory.y_end]
    worst = torch.zeros_like(run.problem.y0[..., 0])
    steps = [after - before for before, after in pairwise(states)]
    for k, (step, after) in enumerate(pairwise(steps)):
        turn = after * (dt[..., k, :] / dt[..., k + 1, :]) - step
        ratio = torch.linalg.vector_norm(turn, dim=-1) / torch.linalg.vector_norm(step, dim=-1)
        worst = torch.maximum(worst, torch.where(torch.isfinite(ratio), ratio, 0.0))
    return worst.amax().item()
