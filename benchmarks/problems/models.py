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
from collections.abc import Callable, Mapping, Sequence
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
    shapes = {
        f"layer{k}": (outputs, inputs) for k, (inputs, outputs) in enumerate(pairwise(widths))
    }

    def features(parameters: Parameters, x: Tensor) -> Tensor:
        for name in [*shapes][:-1]:
            weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
            x = torch.tanh(functional.linear(x, weight, bias))
        return x

    return _model(shapes, _as_torch, features)


def conv_net(outputs: int) -> Model:
    """Two 3x3 convolutions of stride 2 with tanh, then a linear head, for [n, 1, 8, 8] inputs.

    The 8 and 16 maps have 4x4 and 2x2 pixels; with 5 outputs there are 1573 parameters.
    """

    def features(parameters: Parameters, x: Tensor) -> Tensor:
        for name in ("conv0", "conv1"):
            weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
            x = torch.tanh(functional.conv2d(x, weight, bias, stride=2, padding=1))
        return x.flatten(-3)

    shapes = {"conv0": (8, 1, 3, 3), "conv1": (16, 8, 3, 3), "head": (outputs, 4 * 16)}
    return _model(shapes, _as_torch, features)


def count(parameters: Parameters) -> int:
    """The number of scalars in the parameters."""
    return sum(tensor.numel() for tensor in parameters.values())


Shape = tuple[int, ...]
Draw = Callable[[Shape, Generator], tuple[Tensor, Tensor]]
"""`draw(shape, generator)` is a weight and its bias."""


def _model(
    shapes: Mapping[str, Shape], draw: Draw, features: Callable[[Parameters, Tensor], Tensor]
) -> Model:
    """A network of layers by the shapes of their weights; the last one is its linear head."""
    head = [*shapes][-1]
    weight, bias = f"{head}.weight", f"{head}.bias"

    def init(seed: int) -> Parameters:
        generator = Generator().manual_seed(seed)
        parameters: Parameters = {}
        for name, shape in shapes.items():
            if len(shape) == 1:  # the scale and shift of a normalisation
                own = (
                    torch.ones(shape, dtype=torch.float64),
                    torch.zeros(shape, dtype=torch.float64),
                )
            else:
                own = draw(shape, generator)
            parameters[f"{name}.weight"], parameters[f"{name}.bias"] = own
        return parameters

    def apply(parameters: Parameters, x: Tensor) -> Tensor:
        return functional.linear(features(parameters, x), parameters[weight], parameters[bias])

    return Model(init, apply, features, (weight, bias))


def _uniform(shape: Shape, bound: float, generator: Generator) -> Tensor:
    """Float64 numbers from -bound to bound."""
    unit = torch.rand(shape, generator=generator, dtype=torch.float64)
    return bound * (2 * unit - 1)


def _as_torch(shape: Shape, generator: Generator) -> tuple[Tensor, Tensor]:
    """As torch.nn.Linear and Conv2d draw them.

    `kaiming_uniform_(weight, a=sqrt(5))` is U(-b, b) with b = 1/sqrt(fan_in), and the bias has
    the same range.
    """
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return _uniform(shape, bound, generator), _uniform(shape[:1], bound, generator)


def _glorot(shape: Shape, generator: Generator, gain: float = 1.0) -> tuple[Tensor, Tensor]:
    """Glorot and Bengio's uniform weights, zero biases."""
    bound = gain * math.sqrt(6 / (math.prod(shape[2:]) * (shape[0] + shape[1])))
    return _uniform(shape, bound, generator), torch.zeros(shape[0], dtype=torch.float64)


def _wide_glorot(shape: Shape, generator: Generator) -> tuple[Tensor, Tensor]:
    """As iMAML: the same with a gain of 1.73, and biases from 0 to 0.05."""
    weight, _ = _glorot(shape, generator, gain=1.73)
    return weight, 0.025 + _uniform(shape[:1], 0.025, generator)


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
    return lambda maps, scale, shift: functional.group_norm(maps, count, scale, shift)


ACTIVATIONS: dict[str, Activation] = {
    "relu": torch.relu, "softplus": functional.softplus, "gelu": functional.gelu,
}  # fmt: skip
NORMS: dict[str, Norm] = {"batch": batch_statistics, "group": groups(8)}


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


@dataclass(frozen=True)
class Net:
    """A four-block net; `net(ways, norm, activation)` is its model, by default as in the papers."""

    channels: int  # of a picture
    filters: int  # of each block
    pixels: int  # of the last maps, as far as they are read
    draw: Draw  # of the initial parameters
    convolve: Callable[..., Tensor]  # `convolve(maps, weight, bias, block=...)`
    read: Callable[[Tensor], Tensor]  # the features, [n, features], from the last maps
    reduce: Callable[[Tensor], Tensor] = lambda maps: maps  # after the activation

    def __call__(
        self, ways: int, norm: Norm = batch_statistics, activation: Activation = torch.relu
    ) -> Model:
        """The model that tells so many classes apart; a smooth activation is no paper's."""
        filters = self.filters
        shapes: dict[str, Shape] = {}
        for block in range(BLOCKS):
            inputs = filters if block else self.channels
            shapes |= {
                f"conv{block}": (filters, inputs, KERNEL, KERNEL),
                f"norm{block}": (filters,),
            }

        def features(parameters: Parameters, x: Tensor) -> Tensor:
            for block in range(BLOCKS):
                conv, scaled = (
                    (parameters[f"{name}{block}.weight"], parameters[f"{name}{block}.bias"])
                    for name in ("conv", "norm")
                )
                x = norm(self.convolve(x, *conv, block=block), *scaled)
                x = self.reduce(activation(x))
            return self.read(x)

        return _model(shapes | {"head": (ways, self.pixels * filters)}, self.draw, features)


_flat = partial(torch.flatten, start_dim=-3)

NETS = {
    # MAML's for 28x28 Omniglot: stride 2, maps of 14, 7, 4 and 2 pixels, their mean
    "maml-strided": Net(
        1, 64, 1, _glorot, partial(_same_padding, stride=2), partial(torch.mean, dim=(-2, -1))
    ),
    # MAML's for 84x84 mini-ImageNet: 2x2 max pooling to 42, 21, 10 and 5 pixels
    "maml-pooled": Net(
        3, 32, 25, _glorot, partial(_same_padding, stride=1), _flat,
        partial(functional.max_pool2d, kernel_size=2),
    ),
    # that of iMAML for Omniglot: stride 2, maps of 14, 7 (padded to 8), 4 and 2 pixels
    "imaml-strided": Net(1, 64, 4, _wide_glorot, _imaml_convolution, _flat),
}  # fmt: skip
