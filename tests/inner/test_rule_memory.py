"""Micro-batches need the memory of one of them, forward and backward."""

import torch

import odeopt
from benchmarks.harness.costs import peak_live_bytes

WIDTH, EXAMPLES = 64, 4096


def loss(params, batch):
    hidden = batch @ params["first"]
    for _ in range(4):
        hidden = torch.tanh(hidden @ params["again"])
    return hidden.square().mean()


def test_a_step_and_its_pull_hold_one_micro_batchs_graph(device):
    params = {"first": torch.randn(8, WIDTH), "again": torch.randn(WIDTH, WIDTH) / 8}
    params = {name: leaf.to(device) for name, leaf in params.items()}
    batch = torch.randn(EXAMPLES, 8).to(device)
    grid = odeopt.TimeGrid.from_lr(0.01, 3)

    def peak(micro):
        opt = odeopt.ODEOptimizer(odeopt.Adam(loss, micro_batches=micro))
        return peak_live_bytes(
            lambda: opt.value_and_grad(lambda p, b: p["again"].sum())(params, batch, grid, batch),
            device,
        )

    whole, eighth, sixteenth = peak(1), peak(8), peak(16)
    assert eighth < whole / 6
    assert sixteenth < whole / 9
