"""What the tables of the peers' cases share: outcomes, and recorded loops beside torch's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import odeopt
from odeopt.testing import relative_error
from odeopt.tools.seeds import mix, seeded
from tests.outer.loop.conftest import lend, unroll


class Right(NamedTuple):
    """The case gives pairs of numbers, each found and expected, that agree."""

    tolerance: float = 1e-10


class Refused(NamedTuple):
    """The case ends in an error, or a warning, of odeopt."""

    kind: type[odeopt.OdeoptError] | type[odeopt.OdeoptWarning]
    words: str


RIGHT = Right()


def check(case: Callable[[torch.device], Any], outcome: Right | Refused, device) -> None:
    """Run a case and compare it with what the table says."""
    if isinstance(outcome, Refused):
        assert issubclass(outcome.kind, odeopt.OdeoptError | odeopt.OdeoptWarning)
        with pytest.raises(outcome.kind, match=outcome.words):
            list(case(device) or ())
        return
    pairs = list(case(device))
    assert pairs
    for found, expected in pairs:
        assert relative_error(found, expected) < outcome.tolerance


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def draw(count, device, inputs=3, outputs=1, seed=7):
    """Batches of eight examples."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (8, inputs), (8, outputs)
    return [
        tuple(torch.randn(shape, generator=generator).to(device) for shape in shapes)
        for _ in range(count)
    ]


@dataclass(frozen=True)
class Loop:
    """A training loop of a few steps, recorded, by torch, and unrolled.

    Attributes:
        make: the module; the same at each call, but for the random numbers that it draws.
        optimizer: the name in `torch.optim`, and options.
        loss: of a step, and after the loop.
        lrs: the rate of each half of the parameters; one for all if there is one.
        frozen: the names, or their beginnings, of parameters that the optimiser does not get.
        inputs: how long an example is.
        choices: what else `RecordedLoop` is given.
    """

    make: Callable[[], nn.Module]
    optimizer: str = "SGD"
    options: dict[str, Any] = field(default_factory=dict)
    loss: Callable[..., torch.Tensor] = mse
    lrs: Sequence[float] = (0.05,)
    frozen: tuple[str, ...] = ()
    inputs: int = 3
    choices: dict[str, Any] = field(default_factory=dict)

    def __call__(self, device):
        """(found, expected) of the parameters after the loop, the outer loss and its gradients."""
        *batches, outer = draw(4, device, self.inputs)
        recorded, own, twin = (self.build(device) for _ in range(3))
        with self.recorded(recorded) as inner:
            for batch in batches:
                inner.step(self.loss, batch)
        res = inner.value_and_grad(self.loss, outer)
        with sdpa_kernel(SDPBackend.MATH):
            trained = self._trained(own, batches)
            value, gradients = self._differentiated(twin, batches, outer)
        yield list(inner.model.parameters()), trained
        yield res.value, value
        yield list(res.grads.params.values()), gradients

    def recorded(self, model: nn.Module) -> odeopt.RecordedLoop:
        """The recorded loop of a module."""
        return odeopt.RecordedLoop(model, self._torchs(model), seed=3, **self.choices)

    def build(self, device) -> nn.Module:
        """The module."""
        torch.manual_seed(0)
        return self.make().to(device)

    def _groups(self, model):
        """The names in each group, with the group's rate."""
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        names = [n for n in names if not n.startswith(self.frozen or ("-",))]
        half = len(names) // len(self.lrs)
        parts = [names] if len(self.lrs) == 1 else [names[:half], names[half:]]
        return list(zip(parts, self.lrs, strict=True))

    def _torchs(self, model):
        own = dict(model.named_parameters())
        groups = [
            {"params": [own[n] for n in names], "lr": lr} for names, lr in self._groups(model)
        ]
        return getattr(torch.optim, self.optimizer)(groups, lr=0.1, **self.options)

    def _trained(self, model, batches):
        optimizer = self._torchs(model)
        for k, batch in enumerate(batches):
            optimizer.zero_grad()
            with seeded(mix(3, k), batch[0].device):
                self.loss(model, batch).backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    def _differentiated(self, model, batches, outer):
        chosen = {n: (lr, self.options) for names, lr in self._groups(model) for n in names}
        table = [(self.loss, (batch,), chosen) for batch in batches]
        parameters = list(model.requires_grad_().parameters())
        values, buffers, _ = unroll(model, self.optimizer, table, seed=3)
        value = lend(model.eval(), {**values, **buffers}, self.loss, outer)
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        pairs = zip(found, parameters, strict=True)
        return value.detach(), [torch.zeros_like(p) if g is None else g for g, p in pairs]
