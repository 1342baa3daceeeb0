"""A learner of a small problem, or one that differs in something."""

from __future__ import annotations

import torch

import odeopt
from odeopt.testing import smooth_problem


def adam(leaves):
    return torch.optim.Adam(leaves, lr=0.01)


def make(folder, device=None, method="meta-sgd", optimizer=adam, order=1, **changes):
    """A learner, or one that differs in something; hparams are the learned inner rates."""
    problem = smooth_problem(device, 12)
    pool = {"batch_size": 4, "seed": 0} | changes.pop("pool", {})
    sign = pool.pop("sign", 1)
    data = odeopt.tools.tree.map_tensors(lambda leaf: sign * leaf, problem.batch)
    params = dict(list(problem.params.items())[::order])
    settings = {"lr": 0.1, "steps": 2} | changes.pop("settings", {})
    loss = changes.pop("loss", problem.loss)
    return odeopt.MetaLearner(
        method, params, changes.pop("tasks", odeopt.TaskPool(data, problem.outer_batch, **pool)),
        optimizer, loss=loss, settings=settings, folder=folder, checkpoint_every=2, **changes,
    )  # fmt: skip


def same(first, second):
    pairs = zip(odeopt.tools.tree.tensors(first), odeopt.tools.tree.tensors(second), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
