"""Random problems: a loss, a start, two batches, a horizon and the true gradient.

Their families are regressions of functions, digits, quadratics, and small ones: regressions of
random features, matrix factorisation, and classifiers of tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from sklearn.datasets import (  # pyright: ignore[reportMissingTypeStubs]
    load_breast_cancer,
    load_iris,
    load_wine,
)
from torch import Generator, Tensor
from torch.nn import functional

import odeopt
from benchmarks.harness.registry import Preset
from benchmarks.problems import classification, functions, models
from benchmarks.problems.functions import uniform
from odeopt.testing.problems import Quadratic, relative_error
from odeopt.tools import tree

FAMILIES = (
    "cosmixture text", "cosmixture code", "alpine", "digits mlp", "digits conv", "quadratic",
)  # fmt: skip
OTHERS = ("logistic", "poisson", "log-cosh", "factorisation", "iris", "wine", "breast cancer")


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run."""

    families: tuple[str, ...]  # names in `FAMILIES` or `OTHERS`, taken in turn
    problems: int  # how many
    tolerances: tuple[float, ...]  # what `from_tolerance` is given
    calls: int  # warm ones, after the cold one
    counted: int  # how many of the last of them the warm cost is the mean of
    stiffness: tuple[float, float]  # the range of rho T, with rho at the start
    shots: int  # training points of a regression task, as many for validation
    # How kernels are run on long horizons. `StabilizedRK` makes the stages of a pull again then,
    # so that its counts are larger; others do not depend on it.
    compile: str


LONG = 30.0
r"""$\rho T$ from which on compiled kernels save more time than they take to be made."""

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)
SIZES = {
    Preset.SMOKE: Sizes(
        ("quadratic", "cosmixture code"), 2, (1e-1, 1e-2), 3, 2, (2.0, 4.0), 8, "trace"
    ),
    Preset.QUICK: Sizes(OTHERS, 14, TOLERANCES[:3], 29, 10, (8.0, 150.0), 25, "trace"),
    Preset.PAPER: Sizes(
        (*FAMILIES, *OTHERS), 104, TOLERANCES, 29, 10, (2.0, 500.0), 50, "inductor"
    ),
}

POWER_STEPS = 30
ACCURATE = 1e-6
"""The steps of the reference are doubled until its own error is below this."""

MOST_STEPS = 20_000
"""Solves with more steps are not tried."""

FIXED = {"Euler": odeopt.Euler(), "ModifiedEuler": odeopt.ModifiedEuler(), "RK4": odeopt.RK4()}
STRETCHED = {"Chebyshev2": odeopt.Chebyshev2(), "Chebyshev3": odeopt.Chebyshev3()}


class Training(NamedTuple):
    """What is differentiated, but for its horizon."""

    loss: Callable[[Any, Any], Tensor]  # of parameters and a batch, the inner and the outer one
    params: Any  # the start
    train: Any  # the batch of the flow
    validation: Any  # that of the outer loss


@dataclass(frozen=True)
class Problem:
    """A random problem."""

    family: str
    training: Training
    horizon: float  # T
    stiffness: float  # rho T at the start
    compile: str | None = None  # how kernels are run
    quadratic: Quadratic | None = None  # where the flow is known in closed form
    # those with fixed steps, whose kernels are recorded once
    _fixed: dict[str, odeopt.ODEOptimizer] = field(default_factory=dict[str, odeopt.ODEOptimizer])

    def optimizer(self, **settings: Any) -> odeopt.ODEOptimizer:
        """An optimiser for its loss."""
        flow = odeopt.GradientFlow(self.training.loss)
        return odeopt.ODEOptimizer(flow, compile=self.compile, **settings)

    def fixed(self, name: str) -> odeopt.ODEOptimizer:
        """The one with fixed steps of a kind."""
        if name not in self._fixed:
            self._fixed[name] = self.optimizer(solver={**FIXED, **STRETCHED}[name])
        return self._fixed[name]

    def gradient(self, opt: odeopt.ODEOptimizer, steps: int, estimate: bool = False) -> Any:
        """The result of an optimiser on a uniform grid."""
        loss, params, train, validation = self.training
        grid = odeopt.TimeGrid.uniform(t1=self.horizon, steps=steps)
        return opt.value_and_grad(loss, estimate_error=estimate)(params, train, grid, validation)

    def truth(self) -> tuple[Any, float]:
        """The gradient of the flow and its own relative error."""
        known = self.quadratic
        if known is not None:
            offset = known.flow(self.training.params, self.horizon) - self.training.validation
            return known.flow_adjoint(known.matrix @ offset, self.horizon), 0.0
        steps = max(128, 2 * math.ceil(4 * self.stiffness))
        half = self.gradient(self.fixed("RK4"), steps // 2).grads.params
        while True:
            whole = self.gradient(self.fixed("RK4"), steps).grads.params
            own = relative_error(half, whole) / 15
            if own < ACCURATE or steps > MOST_STEPS:
                return whole, own
            half, steps = whole, 2 * steps


def draw(family: str, seed: int, sizes: Sizes) -> Problem:
    """The problem of a seed."""
    generator = Generator().manual_seed(seed)
    low, high = sizes.stiffness
    stiffness = math.exp(uniform(math.log(low), math.log(high), generator))
    if family == "quadratic":
        return _quadratic(seed, stiffness, generator)
    compile = None
    if family in TABLES:
        training = _classifier(family, generator)
    elif family == "factorisation":
        training = _factorisation(generator)
    elif family in REGRESSIONS:
        training = _regression(family, generator)
    else:
        training = _network(family, seed, sizes.shots)
        compile = sizes.compile if stiffness > LONG else None
    horizon = stiffness / radius(training.loss, training.params, training.train)
    return Problem(family, training, horizon, stiffness, compile)


def radius(loss: Callable[[Any, Any], Tensor], params: Any, batch: Any) -> float:
    """The largest eigenvalue of the Hessian, in size, by power iteration."""
    generator = Generator().manual_seed(0)
    slope = torch.func.grad(loss)
    vector = tree.map_tensors(
        lambda leaf: torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype), params
    )
    for _ in range(POWER_STEPS):
        size = tree.norm(vector)
        unit = tree.map_tensors(lambda leaf, size=size: leaf / size, vector)
        vector = torch.func.jvp(lambda p: slope(p, batch), (params,), (unit,))[1]
    return tree.norm(vector)


def _quadratic(seed: int, stiffness: float, generator: Generator) -> Problem:
    size = int(uniform(3, 30, generator))
    spectrum = [1.0] + [10 ** uniform(-3, 0, generator) for _ in range(size - 1)]
    known = Quadratic.from_spectrum(spectrum, seed)
    start, other = torch.randn(2, size, generator=generator, dtype=torch.float64)
    training = Training(known.loss, start, known.center, other)
    return Problem("quadratic", training, stiffness, stiffness, quadratic=known)


WAYS, SHOTS = 5, 10
DIGITS = {"digits mlp": models.mlp([64, 32, WAYS]), "digits conv": models.conv_net(WAYS)}


def _network(family: str, seed: int, shots: int) -> Training:
    """A classifier of digits, or a network that learns a function, by the name of its protocol."""
    if family in DIGITS:
        task = classification.task(seed, ways=WAYS, shots=SHOTS)
        task = classification.flatten(task) if family == "digits mlp" else task
        model, output_loss = DIGITS[family], models.cross_entropy
    else:
        name, _, protocol = family.partition(" ")
        task = functions.FAMILIES[name].task(seed, protocol or "code", shots)
        model, output_loss = functions.MODEL, models.half_mean_square

    loss = models.Problem(model, output_loss).loss
    return Training(loss, model.init(seed), task.train, task.validation)


EXAMPLES = 60
OBSERVED = 0.6
"""The share of the entries of a matrix that the flow sees."""


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


def _regression(family: str, generator: Generator) -> Training:
    """Features whose scales differ by up to a factor of 30."""
    size = _integer(3, 20, generator)
    scales = 10 ** (-1.5 * torch.rand(size, generator=generator, dtype=torch.float64))
    x = scales * _normal(2 * EXAMPLES, size, generator=generator)
    signal = x @ (_normal(size, generator=generator) / scales.sqrt())
    if family == "logistic":
        y = torch.bernoulli(torch.sigmoid(2 * signal), generator=generator)
    elif family == "poisson":
        y = torch.poisson(torch.exp(signal.clamp(max=2.0)), generator=generator)
    else:
        y = 3 * (signal + _normal(len(signal), generator=generator))
    params = 0.1 * _normal(size, generator=generator)
    train, validation = (x[:EXAMPLES], y[:EXAMPLES]), (x[EXAMPLES:], y[EXAMPLES:])
    return Training(REGRESSIONS[family], params, train, validation)


def _factorisation(generator: Generator) -> Training:
    """A matrix of low rank with noise, of which a part of the entries is known."""
    size, rank = _integer(6, 15, generator), _integer(1, 4, generator)
    left, right, start, other = (_normal(size, rank, generator=generator) for _ in range(4))
    matrix = left @ right.T + 0.1 * _normal(size, size, generator=generator)
    known = (torch.rand(size, size, generator=generator) < OBSERVED).to(torch.float64)

    def loss(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        entries, mask = batch
        gap = mask * (params["left"] @ params["right"].T - entries)
        return 0.5 * gap.square().sum() * (size / mask.sum())

    params = {"left": 0.5 * start, "right": 0.5 * other}
    return Training(loss, params, (matrix, known), (matrix, 1 - known))


TABLES: dict[str, Callable[[], Any]] = {
    "iris": load_iris, "wine": load_wine, "breast cancer": load_breast_cancer,
}  # fmt: skip
ROWS = 50


def _classifier(family: str, generator: Generator) -> Training:
    """A network of one hidden layer on a table of measurements."""
    table = TABLES[family]()
    x = torch.as_tensor(table.data, dtype=torch.float64)
    x, y = (x - x.mean(0)) / x.std(0), torch.as_tensor(table.target)
    rows = torch.randperm(len(x), generator=generator)[: 2 * ROWS]
    x, y, hidden = x[rows], y[rows], _integer(4, 20, generator)

    def layer(inputs: int, outputs: int) -> Tensor:
        return _normal(inputs, outputs, generator=generator) / math.sqrt(inputs)

    params = {
        "hidden": layer(x.shape[1], hidden),
        "shift": torch.zeros(hidden, dtype=torch.float64),
        "out": layer(hidden, int(table.target.max()) + 1),
    }

    def loss(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        features = torch.tanh(batch[0] @ params["hidden"] + params["shift"])
        return functional.cross_entropy(features @ params["out"], batch[1])

    return Training(loss, params, (x[:ROWS], y[:ROWS]), (x[ROWS:], y[ROWS:]))


def _normal(*shape: int, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _integer(low: int, high: int, generator: Generator) -> int:
    return int(torch.randint(low, high, (), generator=generator))
