"""Ridge regression on scikit-learn's diabetes data: its hypergradient is known in closed form.

The inner loss is `|X w - y|^2 / 2n + sum_j exp(r_j) w_j^2 / 2`, with one log-strength r_j per
feature; the outer loss is that of the validation examples without the penalty.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_diabetes  # pyright: ignore[reportMissingTypeStubs]
from torch import Generator, Tensor

from benchmarks.problems.classification import Split
from benchmarks.problems.models import half_mean_square
from benchmarks.problems.tasks import Batch, take

FEATURES = 10


def split(train: int, validation: int, seed: int) -> Split:
    """The 442 patients in random order, in float64; features and target standardised."""
    x, y = load_diabetes(return_X_y=True)
    whole = Batch(_standard(torch.tensor(x)), _standard(torch.tensor(y)))
    order = torch.randperm(len(whole.y), generator=Generator().manual_seed(seed))
    parts = order.tensor_split((train, train + validation))
    return Split(*(take(whole, part) for part in parts))


def inner_loss(w: Tensor, batch: Batch, logs: Tensor) -> Tensor:
    """Half the mean square, and the penalty."""
    return half_mean_square(batch.x @ w, batch.y) + 0.5 * (logs.exp() * w.square()).sum()


def outer_loss(w: Tensor, batch: Batch, logs: Tensor) -> Tensor:
    """Half the mean square."""
    del logs
    return half_mean_square(batch.x @ w, batch.y)


def curvature(batch: Batch, logs: Tensor) -> Tensor:
    """The Hessian of the inner loss, X'X / n + diag(exp(r))."""
    return batch.x.T @ batch.x / len(batch.y) + torch.diag(logs.exp())


def solution(batch: Batch, logs: Tensor) -> Tensor:
    """The minimiser of the inner loss."""
    return torch.linalg.solve(curvature(batch, logs), batch.x.T @ batch.y / len(batch.y))


def hypergradient(train: Batch, validation: Batch, logs: Tensor) -> Tensor:
    """The derivative of the outer loss at the minimiser w.r.t. the log-strengths.

    With H w = X'y / n, dw/dr_j = -H^-1 exp(r_j) w_j e_j, so that entry j is
    -exp(r_j) w_j (H^-1 g)_j, where g is the gradient of the outer loss.
    """
    w = solution(train, logs)
    g = validation.x.T @ (validation.x @ w - validation.y) / len(validation.y)
    return -logs.exp() * w * torch.linalg.solve(curvature(train, logs), g)


def _standard(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / values.std(0)
