"""Modules of the kinds that the tests of higher use: shared, recurrent, normalised, and so on."""

from __future__ import annotations

import torch
from torch import nn


class Apply(nn.Module):
    """A layer between two others, applied by a function."""

    def __init__(self, layer, apply, into=3, out=4) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(3, into), layer, nn.Linear(out, 1)
        self.apply_layer = apply

    def forward(self, x):
        return self.last(self.apply_layer(self.layer, torch.tanh(self.first(x))))


class Pair(nn.Module):
    """One encoder by two names, the second of which is a submodule of another module."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(3, 1))
        self.other = nn.ModuleDict({"inner": nn.Sequential(self.one[0])})

    def forward(self, x):
        return self.one(x) + self.other["inner"](torch.tanh(x))


class Partly(nn.Module):
    """Uses one parameter of two."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = (nn.Parameter(torch.randn(3, 1)) for _ in "ab")

    def forward(self, x):
        return x @ self.used


class Containers(nn.Module):
    """Lists and dictionaries of modules and parameters, and buffers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.heads = nn.ModuleDict({"a": nn.Linear(3, 1)})
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(1))])
        self.shifts = nn.ParameterDict({"z": nn.Parameter(torch.zeros(1))})
        self.register_buffer("size", torch.full((1,), 2.0))
        self.register_buffer("passing", torch.ones(1), persistent=False)
        self.register_buffer("missing", None)
        self.register_parameter("nothing", None)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.heads["a"](x) * self.scales[0] * self.size + self.shifts["z"] * self.passing


class Picture(nn.Module):
    """Convolutions with statistics of the last batch, changes in place and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2, momentum=1.0), nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 2),
        )  # fmt: skip
        self.last = nn.Linear(2, 1)

    def forward(self, x):
        pictures = x[:, None, :, None] * x[:, None, None, :]
        return self.last(self.features(pictures).flatten(1))


def mlp():
    return nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3, bias=False), nn.Sigmoid(), nn.Linear(3, 1)
    )


def smooth_mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def shared_sequence():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(3, 3), nn.Sigmoid(), layer, nn.Linear(3, 1))


def norm_mlp():
    return nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 3), nn.BatchNorm1d(3),
        nn.Linear(3, 1),
    )  # fmt: skip


def recurrent(kind):
    return Apply(kind(3, 4, 2), lambda layer, x: layer(x.reshape(4, 2, 3))[0].reshape(8, 4))


def cell(kind):
    def unrolled(layer, x):
        state = None
        for _ in range(3):
            state = layer(x, state)
        return state[0] if isinstance(state, tuple) else state

    return Apply(kind(3, 4), unrolled)


def embedded(kind=nn.Embedding, **options):
    def look_up(layer, x):
        return layer((x[:, :2] > 0).long()).reshape(8, -1)

    return Apply(kind(5, 4, **options), look_up, out=8 if kind is nn.Embedding else 4)


def attending(how):
    def attend(layer, x):
        x = x.reshape(2, 4, 4)
        return (layer(x, x, x)[0] if how == "weights" else layer(x)).reshape(8, 4)

    layer = {
        "weights": lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        "layer": lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
    }[how]()
    return Apply(layer, attend, into=4)


def dropping(training):
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).train(training)


def wrapped(function, layer=None):
    return Apply(nn.Linear(3, 4) if layer is None else layer, function)
