"""What can be predicted without a network: averages and biases, scored on the same test.

All learn from the training users; what is said of a test user comes from the ratings to adapt to.
Ratings are in units of the training users' standard deviation, and their mean is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.problems.rating_tasks import MetaTest, Rated

USER_RIDGE, ITEM_RIDGE = 5.0, 25.0
"""A bias is the sum of its residuals over their number plus this, so that few ratings say little.
Rounded by hand, not tuned: in the data sets here the variance of a user's ratings is three to six
times that of the users' means, and most items have so many that their constant hardly matters."""

SWEEPS = 30
"""Alternations between the biases of users and of items."""

LABELS = {
    "global": "global mean",
    "item": "item means",
    "user": "user's own mean, shrunk",
    "biases": "item and user biases, shrunk",
}


def errors(train: Tensor, test: MetaTest) -> dict[str, Tensor]:
    """The held-out error of each baseline on each test user, by the names in `LABELS`.

    Args:
        train: Ratings of the training users, shape [users, 100], NaN where there is none.
        test: The meta-test.
    """
    held_out = test.held_out
    return {name: held_out.error(p) for name, p in predictions(train, test).items()}


def predictions(train: Tensor, test: MetaTest) -> dict[str, Tensor]:
    """What each baseline predicts for the held-out ratings, shape [users, n, 1]."""
    held_out, nothing = test.held_out, torch.zeros(train.shape[1], dtype=train.dtype)
    bias = item_biases(train)
    by_item = torch.stack([nothing, item_means(train), nothing, bias])
    by_user = (0.0, 0.0, user_biases(test.support, nothing), user_biases(test.support, bias))
    return {
        name: held_out.x @ items.unsqueeze(-1) + users
        for name, items, users in zip(LABELS, by_item, by_user, strict=True)
    }


def item_means(train: Tensor) -> Tensor:
    """The mean rating of each item, 0 for one without ratings, shape [100]."""
    return train.nanmean(0).nan_to_num(0.0)


def item_biases(train: Tensor) -> Tensor:
    r"""Item biases b of the ridge regression on user and item biases, shape [100].

    It minimises $\sum (r_{ui} - a_u - b_i)^2 + \rho_a \sum a_u^2 + \rho_b \sum b_i^2$ over the
    training users, by turns.
    """
    known = ~train.isnan()
    scores, item = train.nan_to_num(0.0), torch.zeros(train.shape[1], dtype=train.dtype)
    per_user, per_item = known.sum(1) + USER_RIDGE, known.sum(0) + ITEM_RIDGE
    for _ in range(SWEEPS):
        user = ((scores - item) * known).sum(1) / per_user
        item = ((scores - user.unsqueeze(1)) * known).sum(0) / per_item
    return item


def user_biases(support: Rated, item: Tensor) -> Tensor:
    """The bias of each test user, given those of items, shape [users, 1, 1]."""
    residuals = (support.y - support.x @ item.unsqueeze(-1)).squeeze(-1) * support.known
    return (residuals.sum(1) / (support.known.sum(1) + USER_RIDGE)).reshape(-1, 1, 1)
