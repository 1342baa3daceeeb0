"""A small problem on which gradients are compared bit by bit."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from odeopt import GradientFlow, ODEOptimizer, TimeGrid


class Crash(Exception):  # noqa: N818
    """Raised by a loss in place of a crash."""


@dataclass
class Bench:
    """One problem, solved with any choices."""

    steps: int = 30
    tasks: int | None = None
    limit: int | None = None
    calls: int = 0
    tweak: dict = field(default_factory=dict)

    def settings(self):
        """The loss depends on nothing here; it counts its calls."""
        return {}

    def loss(self, params, batch, hparams):
        self.calls += 1
        if self.limit is not None and self.calls > self.limit:
            raise Crash
        x, y = batch
        out = torch.tanh(x @ params["w"] + params["b"])
        return (out - y).square().mean() + hparams["mu"] * params["w"].square().sum()

    @staticmethod
    def outer(params, batch, hparams):
        x, y = batch
        return (x @ params["w"] + params["b"] - y).square().mean() * (1 + hparams["mu"])

    def inputs(self):
        generator = torch.Generator().manual_seed(3)
        lead = () if self.tasks is None else (self.tasks,)

        def draw(*shape):
            return torch.randn(*shape, generator=generator)

        params = {"w": draw(5, 2), "b": draw(2)}
        batch = (draw(*lead, 8, 5), draw(*lead, 8, 2))
        outer_batch = (draw(*lead, 8, 5), draw(*lead, 8, 2))
        return params, batch, outer_batch, {"mu": torch.tensor(0.01)}

    def run(self, checkpoints, solver=None, adjoint=None, grid=None, **keywords):
        field = self.tweak.get("field", GradientFlow)(self.loss)
        opt = ODEOptimizer(field, solver, adjoint, checkpoints)
        params, batch, outer_batch, hparams = self.inputs()
        params = {**params, **self.tweak.get("params", {})}
        batch = self.tweak.get("batch", batch)
        outer_batch = self.tweak.get("outer_batch", outer_batch)
        hparams = {**hparams, **self.tweak.get("hparams", {})}
        grid = TimeGrid.from_lr(0.1, self.steps) if grid is None else grid
        call = opt.value_and_grad(self.outer, tasks=self.tasks is not None, **keywords)
        return call(params, batch, grid, outer_batch, hparams)


def same(one, other):
    """Whether two results are bitwise the same."""
    pairs = zip(_leaves(one), _leaves(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _leaves(res):
    grads = res.grads
    return [res.value, grads.params["w"], grads.params["b"], grads.hparams["mu"], grads.dt]


@pytest.fixture
def bench():
    return Bench()
