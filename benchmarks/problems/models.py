"""Small smooth networks as pure functions of a dictionary of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

Parameters = dict[str, Tensor]


class Model(NamedTuple):
    """A network without state.

    Attributes:
        init: `init(seed)` draws float64 parameters.
        apply: `apply(parameters, x)` maps inputs [n, ...] to outputs [n, outputs]; it works
            under `torch.func` transformations of either argument.
        features: `features(parameters, x)`, the inputs of the last layer, [n, features].
        head: The names of the last layer's weight and bias.
    """

    init: Callable[[int], Parameters]
    apply: Callable[[Parameters, Tensor], Tensor]
    features: Callable[[Parameters, Tensor], Tensor]
    head: tuple[str, str]


def mlp(widths: Sequence[int]) -> Model:
    """A multilayer perceptron with tanh between its layers.

    Args:
        widths: Numbers of inputs, hidden units and outputs; [2, 32, 32, 1] has 1185 parameters.
    """
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

    Args:
        outputs: The number of classes; with 5 and the default channels, 1573 parameters.
        channels: The number of maps after each convolution (of 4x4 and 2x2 pixels).
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
    """A network that ends in a linear layer.

    Args:
        init: See `Model`.
        features: See `Model`.
        name: The linear layer's.
    """
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
