"""Networks as pure functions of a dictionary of parameters, and their losses.

`mlp` and `conv_net` are small and smooth. The others are the four-block convolutional nets of MAML
and iMAML: a block is a 3x3 convolution, a normalisation and an activation; MAML's net for
mini-ImageNet has max pooling after each. Normalisation is by the statistics of the batch at hand,
in training and test alike, as both papers have it: a prediction then depends on the other pictures
that are predicted with it ("transductive"). Scales and shifts are parameters like the others.
`groups` is the variant in which it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from benchmarks.problems.tasks import Batch


def half_mean_square(prediction: Tensor, y: Tensor) -> Tensor:
    """`0.5 * mean((prediction - y)^2)`, the inner and outer loss of the regression tasks.

    Raises:
        ValueError: The shapes differ, which would broadcast to all pairs.
    """
    if prediction.shape != y.shape:
        raise ValueError(f"predictions {tuple(prediction.shape)}, targets {tuple(y.shape)}")
    return 0.5 * (prediction - y).square().mean()


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of logits [n, classes] against labels [n]."""
    return functional.cross_entropy(logits, y)


Parameters = dict[str, Tensor]


class Model(NamedTuple):
    """A network without state."""

    init: Callable[[int], Parameters]  # `init(seed)` draws float64 parameters
    # `apply(parameters, x)` maps inputs [n, ...] to outputs [n, outputs]; it works under
    # `torch.func` transformations of either argument
    apply: Callable[[Parameters, Tensor], Tensor]
    # `features(parameters, x)`, the inputs of the last layer, [n, features]
    features: Callable[[Parameters, Tensor], Tensor]
    head: tuple[str, str]  # the names of the last layer's weight and bias


@dataclass(frozen=True)
class Problem:
    """A model and the loss of its outputs against targets."""

    model: Model
    output_loss: Callable[[Tensor, Tensor], Tensor]

    def loss(self, params: Parameters, batch: Batch) -> Tensor:
        """The loss of parameters on a batch."""
        return self.output_loss(self.model.apply(params, batch.x), batch.y)


def mlp(widths: Sequence[int]) -> Model:
    """A multilayer perceptron with tanh between its layers; [2, 32, 32, 1] has 1185 parameters."""
    layers = list(enumerate(pairwise(widths)))

    def init(seed: int) -> Parameters:
        generator = Generator().manual_seed(seed)
        parameters: Parameters = {}
        for index, (inputs, outputs) in layers:
            parameters |= _layer(f"layer{index}", (outputs, inputs), generator)
        return parameters

    def features(parameters: Parameters, x: Tensor) -> Tensor:
        for index, _ in layers[:-1]:
            name = f"layer{index}"
            x = torch.tanh(
                functional.linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])
            )
        return x

    return with_head(init, features, f"layer{len(layers) - 1}")


def conv_net(outputs: int = 5, channels: tuple[int, int] = (8, 16)) -> Model:
    """Two 3x3 convolutions of stride 2 with tanh, then a linear head, for [n, 1, 8, 8] inputs.

    The maps have 4x4 and 2x2 pixels; with 5 outputs and the default channels there are 1573
    parameters.
    """
    first, second = channels

    def init(seed: int) -> Parameters:
        generator = Generator().manual_seed(seed)
        return (
            _layer("conv0", (first, 1, 3, 3), generator)
            | _layer("conv1", (second, first, 3, 3), generator)
            | _layer("head", (outputs, 4 * second), generator)
        )

    def features(parameters: Parameters, x: Tensor) -> Tensor:
        for name in ("conv0", "conv1"):
            weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
            x = torch.tanh(functional.conv2d(x, weight, bias, stride=2, padding=1))
        return x.flatten(-3)

    return with_head(init, features, "head")


def count(parameters: Parameters) -> int:
    """The number of scalars in the parameters."""
    return sum(tensor.numel() for tensor in parameters.values())


def with_head(
    init: Callable[[int], Parameters],
    features: Callable[[Parameters, Tensor], Tensor],
    name: str,
) -> Model:
    """A network that ends in the linear layer of a name."""
    weight, bias = f"{name}.weight", f"{name}.bias"

    def apply(parameters: Parameters, x: Tensor) -> Tensor:
        return functional.linear(features(parameters, x), parameters[weight], parameters[bias])

    return Model(init, apply, features, (weight, bias))


def _layer(name: str, shape: tuple[int, ...], generator: Generator) -> Parameters:
    """Weight and bias as torch.nn.Linear and Conv2d draw them.

    `kaiming_uniform_(weight, a=sqrt(5))` is U(-b, b) with b = 1/sqrt(fan_in), and the bias has
    the same range.
    """
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return {
        f"{name}.weight": uniform(shape, bound, generator),
        f"{name}.bias": uniform(shape[:1], bound, generator),
    }


def uniform(shape: tuple[int, ...], bound: float, generator: Generator) -> Tensor:
    """Float64 numbers from -bound to bound."""
    unit = torch.rand(shape, generator=generator, dtype=torch.float64)
    return bound * (2 * unit - 1)


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
    """What may be chosen of each net."""

    norm: Norm = batch_statistics  # or `groups(count)`
    activation: Activation = torch.relu  # as in the papers, or one that is smooth


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
    return _net(
        ways,
        channels,
        filters,
        filters,
        _Maps(convolve, partial(torch.mean, dim=(-2, -1))),
        choices,
        _glorot,
    )


def maml_pooled(
    ways: int, choices: Choices = PAPERS, filters: int = 32, channels: int = 3
) -> Model:
    """MAML's net for 84x84 mini-ImageNet: 2x2 max pooling to 42, 21, 10 and 5 pixels."""
    convolve = partial(_same_padding, stride=1)
    maps = _Maps(
        convolve,
        partial(torch.flatten, start_dim=-3),
        partial(functional.max_pool2d, kernel_size=2),
    )
    return _net(ways, channels, filters, 25 * filters, maps, choices, _glorot)


def imaml_strided(
    ways: int, choices: Choices = PAPERS, filters: int = 64, channels: int = 1
) -> Model:
    """The net of iMAML for Omniglot: stride 2, maps of 14, 7 (padded to 8), 4 and 2 pixels."""
    maps = _Maps(_imaml_convolution, partial(torch.flatten, start_dim=-3))
    return _net(ways, channels, filters, 4 * filters, maps, choices, _wide_glorot)


NETS = {"maml-strided": maml_strided, "maml-pooled": maml_pooled, "imaml-strided": imaml_strided}


@dataclass(frozen=True)
class _Maps:
    """What is done to maps."""

    convolve: Callable[..., Tensor]  # `convolve(maps, weight, bias, block=...)`
    read: Callable[[Tensor], Tensor]  # the features, [n, features], from the last maps
    reduce: Callable[[Tensor], Tensor] = lambda maps: maps  # after the activation


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
