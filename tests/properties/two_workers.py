"""What each of two processes runs: `python two_workers.py CASE FOLDER`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch

import odeopt

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


def weighted(params, batch, hparams):
    """A loss with a learned weight for each example."""
    x, y, index = batch
    errors = (torch.tanh(x @ params["w"]) @ params["v"] - y).square()
    return (hparams["weights"][index].exp() * errors).mean()


def outer(params, batch, hparams):
    x, y = batch
    return (torch.tanh(x @ params["w"]) @ params["v"] - y).square().mean()


def gradient(spread):
    """Through eight steps of Adam on minibatches, of three tasks: workers have two, and one."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    data = draw(3, 12, 2), draw(3, 12)
    params, hparams = {"w": draw(2, 4), "v": draw(4)}, {"weights": draw(12)}
    rows = torch.stack([torch.randperm(12, generator=generator)[:6] for _ in range(8)])

    def batch(k):
        return data[0][:, rows[k]], data[1][:, rows[k]], rows[k].expand(3, -1)

    call = spread(odeopt.ODEOptimizer(odeopt.Adam(weighted)).value_and_grad(outer, tasks=True))
    grid, held_out = odeopt.TimeGrid.from_lr(0.05, 8), (draw(3, 9, 2), draw(3, 9))
    res = call(params, odeopt.Stream(batch), grid, held_out, hparams)
    return [res.value, res.grads.params, res.grads.hparams, res.grads.dt]


if __name__ == "__main__":
    with odeopt.Workers(timeout=60.0) as workers:
        found = gradient(partial(odeopt.spread, workers=workers))
    torch.save(found, Path(sys.argv[2]) / f"found-{workers.rank}.pt")
