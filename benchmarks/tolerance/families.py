"""Families of small problems: regressions, matrix factorisation, and classifiers of tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from sklearn.datasets import (  # pyright: ignore[reportMissingTypeStubs]
    load_breast_cancer,
    load_iris,
    load_wine,
)
from torch import Tensor
from torch.nn import functional

FLOAT = torch.float64
EXAMPLES = 60
OBSERVED = 0.6
"""The share of the entries of a matrix that the flow sees."""

TABLES: dict[str, Callable[[], Any]] = {
    "iris": load_iris,
    "wine": load_wine,
    "breast cancer": load_breast_cancer,
}
ROWS = 50


class Drawn(NamedTuple):
    """A loss of parameters and a batch, a start, and two batches."""

    loss: Callable[[Any, Any], Tensor]
    params: Any
    train: Any
    validation: Any


def draw(family: str, generator: torch.Generator) -> Drawn:
    """A problem of a family."""
    if family in TABLES:
        return classifier(family, generator)
    if family == "factorisation":
        return factorisation(generator)
    return regression(family, generator)


def logistic(params: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Logistic regression."""
    return functional.binary_cross_entropy_with_logits(batch[0] @ params, batch[1])


def poisson(params: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Poisson regression."""
    rate = batch[0] @ params
    return (torch.exp(rate) - batch[1] * rate).mean()


def log_cosh(params: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Robust regression."""
    gap = batch[0] @ params - batch[1]
    return (gap + functional.softplus(-2 * gap) - math.log(2)).mean()


REGRESSIONS = {"logistic": logistic, "poisson": poisson, "log-cosh": log_cosh}


def regression(family: str, generator: torch.Generator) -> Drawn:
    """Features whose scales differ by up to a factor of 30."""
    size = _integer(3, 20, generator)
    scales = 10 ** (-1.5 * torch.rand(size, generator=generator, dtype=FLOAT))
    x = scales * _normal(2 * EXAMPLES, size, generator=generator)
    signal = x @ (_normal(size, generator=generator) / scales.sqrt())
    y = _targets(family, signal, generator)
    params = 0.1 * _normal(size, generator=generator)
    train, validation = (x[:EXAMPLES], y[:EXAMPLES]), (x[EXAMPLES:], y[EXAMPLES:])
    return Drawn(REGRESSIONS[family], params, train, validation)


def _targets(family: str, signal: Tensor, generator: torch.Generator) -> Tensor:
    if family == "logistic":
        return torch.bernoulli(torch.sigmoid(2 * signal), generator=generator)
    if family == "poisson":
        return torch.poisson(torch.exp(signal.clamp(max=2.0)), generator=generator)
    return 3 * (signal + _normal(len(signal), generator=generator))


def factorisation(generator: torch.Generator) -> Drawn:
    """A matrix of low rank with noise, of which a part of the entries is known."""
    size, rank = _integer(6, 15, generator), _integer(1, 4, generator)
    left, right, start, other = (_normal(size, rank, generator=generator) for _ in range(4))
    matrix = left @ right.T + 0.1 * _normal(size, size, generator=generator)
    known = (torch.rand(size, size, generator=generator) < OBSERVED).to(FLOAT)

    def loss(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        entries, mask = batch
        gap = mask * (params["left"] @ params["right"].T - entries)
        return 0.5 * gap.square().sum() * (size / mask.sum())

    params = {"left": 0.5 * start, "right": 0.5 * other}
    return Drawn(loss, params, (matrix, known), (matrix, 1 - known))


def classifier(family: str, generator: torch.Generator) -> Drawn:
    """A network of one hidden layer on a table of measurements."""
    table = TABLES[family]()
    x = torch.as_tensor(table.data, dtype=FLOAT)
    x, y = (x - x.mean(0)) / x.std(0), torch.as_tensor(table.target)
    rows = torch.randperm(len(x), generator=generator)[: 2 * ROWS]
    x, y, hidden = x[rows], y[rows], _integer(4, 20, generator)
    params = {
        "hidden": _layer(x.shape[1], hidden, generator),
        "shift": torch.zeros(hidden, dtype=FLOAT),
        "out": _layer(hidden, int(table.target.max()) + 1, generator),
    }

    def loss(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        features = torch.tanh(batch[0] @ params["hidden"] + params["shift"])
        return functional.cross_entropy(features @ params["out"], batch[1])

    return Drawn(loss, params, (x[:ROWS], y[:ROWS]), (x[ROWS:], y[ROWS:]))


def _layer(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return _normal(rows, columns, generator=generator) / math.sqrt(rows)


def _normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=FLOAT)


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high, (), generator=generator))
