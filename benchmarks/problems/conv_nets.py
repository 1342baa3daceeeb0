"""The four-block convolutional nets of MAML and iMAML, as pure functions of their parameters.

A block is a 3x3 convolution, a normalisation and an activation; MAML's net for mini-ImageNet has
max pooling after each. Normalisation is by the statistics of the batch at hand, in training and
test alike, as both papers have it: a prediction then depends on the other pictures that are
predicted with it ("transductive"). Scales and shifts are parameters like the others. `groups` is
the variant in which it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn import functional

from benchmarks.problems.models import Model, Parameters, uniform, with_head

BLOCKS = 4
KERNEL = 3

Norm = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`norm(maps, scale, shift)`, with maps [n, filters, height, width]."""
Activation = Callable[[Tensor], Tensor]


def batch_statistics(maps: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Mean 0 and variance 1 of each filter over the batch and its pixels."""
    return functional.batch_norm(maps, None, None, scale, shift, training=True)


def groups(count: int) -> Norm:
    """Mean 0 and variance 1 of each picture over each of so many groups of filters."""

    def norm(maps: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return functional.group_norm(maps, count, scale, shift)

    return norm


@dataclass(frozen=True)
class Choices:
    """What may be chosen of each net.

    Attributes:
        norm: `batch_statistics`, or `groups(count)`.
        activation: E.g. `torch.relu`, as in the papers, or one that is smooth.
    """

    norm: Norm = batch_statistics
    activation: Activation = torch.relu


PAPERS = Choices()
"""As in the papers."""

ACTIVATIONS: dict[str, Activation] = {
    "relu": torch.relu, "softplus": functional.softplus, "gelu": functional.gelu,
}  # fmt: skip
NORMS: dict[str, Norm] = {"batch": batch_statistics, "group": groups(8)}


def maml_strided(
    ways: int, choices: Choices = PAPERS, filters: int = 64, channels: int = 1
) -> Model:
    """MAML's net for 28x28 Omniglot: stride 2, maps of 14, 7, 4 and 2 pixels, their mean."""
    convolve = partial(_same_padding, stride=2)
    return _net(ways, channels, filters, filters, _Maps(convolve, _mean), choices, _glorot)


def maml_pooled(
    ways: int, choices: Choices = PAPERS, filters: int = 32, channels: int = 3
) -> Model:
    """MAML's net for 84x84 mini-ImageNet: 2x2 max pooling to 42, 21, 10 and 5 pixels."""
    convolve = partial(_same_padding, stride=1)
    maps = _Maps(convolve, _flat, partial(functional.max_pool2d, kernel_size=2))
    return _net(ways, channels, filters, 25 * filters, maps, choices, _glorot)


def imaml_strided(
    ways: int, choices: Choices = PAPERS, filters: int = 64, channels: int = 1
) -> Model:
    """The net of iMAML for Omniglot: stride 2, maps of 14, 7 (padded to 8), 4 and 2 pixels."""
    maps = _Maps(_imaml_convolution, _flat)
    return _net(ways, channels, filters, 4 * filters, maps, choices, _wide_glorot)


NETS = {"maml-strided": maml_strided, "maml-pooled": maml_pooled, "imaml-strided": imaml_strided}


@dataclass(frozen=True)
class _Maps:
    """What is done to maps.

    Attributes:
        convolve: `convolve(maps, weight, bias, block=...)`.
        read: The features, [n, features], from the last maps.
        reduce: After the activation.
    """

    convolve: Callable[..., Tensor]
    read: Callable[[Tensor], Tensor]
    reduce: Callable[[Tensor], Tensor] = lambda maps: maps


Layer = Callable[[str, tuple[int, ...], Generator], Parameters]
"""`layer(name, shape, generator)` draws a weight and its bias."""


def _net(
    ways: int, channels: int, filters: int, width: int, maps: _Maps, choices: Choices, layer: Layer
) -> Model:
    def init(seed: int) -> Parameters:
        generator = Generator().manual_seed(seed)
        parameters: Parameters = {}
        for block in range(BLOCKS):
            inputs = filters if block else channels
            parameters |= layer(f"conv{block}", (filters, inputs, KERNEL, KERNEL), generator)
            parameters[f"norm{block}.weight"] = torch.ones(filters, dtype=torch.float64)
            parameters[f"norm{block}.bias"] = torch.zeros(filters, dtype=torch.float64)
        return parameters | layer("head", (ways, width), generator)

    def features(parameters: Parameters, x: Tensor) -> Tensor:
        for block in range(BLOCKS):
            weight, bias = parameters[f"conv{block}.weight"], parameters[f"conv{block}.bias"]
            x = maps.convolve(x, weight, bias, block=block)
            x = choices.norm(x, parameters[f"norm{block}.weight"], parameters[f"norm{block}.bias"])
            x = maps.reduce(choices.activation(x))
        return maps.read(x)

    return with_head(init, features, "head")


def _same_padding(x: Tensor, weight: Tensor, bias: Tensor, block: int, stride: int) -> Tensor:
    """Maps of ceil(size / stride) pixels; what padding is odd goes to the right and bottom."""
    del block
    size = x.shape[-1]
    padding = max((math.ceil(size / stride) - 1) * stride + KERNEL - size, 0)
    if padding % 2 == 0:
        return functional.conv2d(x, weight, bias, stride, padding // 2)
    before, after = padding // 2, padding - padding // 2
    padded = functional.pad(x, (before, after, before, after))
    return functional.conv2d(padded, weight, bias, stride)


def _imaml_convolution(x: Tensor, weight: Tensor, bias: Tensor, block: int) -> Tensor:
    """Stride 2, padding 1; the maps after the second block get a row and a column of zeros."""
    if block == 2:
        x = functional.pad(x, (0, 1, 0, 1))
    return functional.conv2d(x, weight, bias, 2, 1)


def _mean(maps: Tensor) -> Tensor:
    return maps.mean((-2, -1))


def _flat(maps: Tensor) -> Tensor:
    return maps.flatten(-3)


def _glorot(
    name: str, shape: tuple[int, ...], generator: Generator, gain: float = 1.0
) -> Parameters:
    """Glorot and Bengio's uniform weights, zero biases."""
    pixels = math.prod(shape[2:])
    bound = gain * math.sqrt(6 / (pixels * (shape[0] + shape[1])))
    zeros = torch.zeros(shape[0], dtype=torch.float64)
    return {f"{name}.weight": uniform(shape, bound, generator), f"{name}.bias": zeros}


def _wide_glorot(name: str, shape: tuple[int, ...], generator: Generator) -> Parameters:
    """As iMAML: the same with a gain of 1.73, and biases from 0 to 0.05."""
    drawn = _glorot(name, shape, generator, gain=1.73)
    drawn[f"{name}.bias"] = 0.025 + uniform(shape[:1], 0.025, generator)
    return drawn
