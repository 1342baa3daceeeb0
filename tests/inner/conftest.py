"""A small regression problem whose examples can be drawn in minibatches."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

import odeopt


def predict(params, x):
    return torch.tanh(x @ params["w"]) @ params["out"]["v"] + params["out"]["b"]


def plain_loss(params, batch):
    return (predict(params, batch[0]) - batch[1]).square().mean()


def weighted_loss(params, batch, hparams):
    x, y, index = batch
    error = (predict(params, x) - y).square()
    return (torch.exp(hparams["weights"][index]) * error).mean()


def outer_loss(params, batch, hparams=None):
    value = (predict(params, batch[0]) - batch[1]).square().mean()
    return value if hparams is None else value + 0.01 * hparams["weights"].square().sum()


class Regression(NamedTuple):
    params: dict
    hparams: dict
    data: tuple
    outer: tuple
    plain_loss: Callable
    weighted_loss: Callable
    outer_loss: Callable

    def stream(self, seed=0, size=5, random_loss=False):
        return odeopt.Stream.minibatches(self.data, size, seed, random_loss=random_loss)


@pytest.fixture
def regression(device):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(device)

    params = {"w": draw(3, 4), "out": {"v": draw(4), "b": draw()}}
    hparams = {"decay": draw(3, 4).abs() * 0.1, "weights": 0.3 * draw(20), "rate": draw() * 0.1}
    data = (draw(20, 3), draw(20), torch.arange(20, device=device))
    outer = (draw(8, 3), draw(8))
    return Regression(params, hparams, data, outer, plain_loss, weighted_loss, outer_loss)
