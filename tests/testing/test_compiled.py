"""Fields and solvers that do not bear being compiled do not conform."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

import odeopt
from odeopt.testing import check_compiled
from odeopt.tools import tree
from odeopt.tools.arguments import call_loss


class Flow(odeopt.Field):
    """Gradient flow with a factor."""

    def __init__(self, loss):
        self.loss = loss

    def factor(self, slope, batch):
        return 1.0

    def velocity(self, t, state, consts, hparams, batch):
        slope = torch.func.grad(lambda u: call_loss(self.loss, hparams, u, batch))(state)
        factor = self.factor(slope, batch)
        return tree.map_tensors(lambda g: -factor * g, slope)


def test_a_right_field_and_a_right_solver_conform(device):
    check_compiled(Flow, odeopt.ModifiedEuler(), device=device)


class Counting(Flow):
    calls = 0

    def factor(self, slope, batch):
        self.calls += 1
        return 1.0


class Branching(Flow):
    def factor(self, slope, batch):
        return 1.0 if slope["bias"].sum().item() > 0 else 2.0


class Watchful(Flow):
    """Does something else while it is traced."""

    def factor(self, slope, batch):
        mode = type(_get_current_dispatch_mode()).__name__
        return 2.0 if mode == "ProxyTorchDispatchMode" else 1.0


class Remembering(Flow):
    """Goes on with the number of examples that it has seen first."""

    def __init__(self, loss):
        super().__init__(loss)

        def first_of_all():
            first = yield
            while True:
                yield first

        self.sizes = first_of_all()
        next(self.sizes)

    def factor(self, slope, batch):
        return 1.0 / self.sizes.send(len(batch[0]))


class Hiding(Flow):
    """Keeps its loss where nobody sees it."""

    def __init__(self, loss):
        sys.modules["hidden"] = SimpleNamespace(loss=loss)

    @property
    def loss(self):
        return sys.modules["hidden"].loss


@pytest.mark.parametrize(("make", "message"), [
    (Counting, "kernels are compiled anew in a call that differs in numbers only"),
    (Branching, "for the first inputs it is not compiled: .*cannot be traced"),
    (Watchful, "for the first inputs: the compiled .* kernel gives other numbers"),
    (Remembering, "for another number of examples compiled results differ from eager ones"),
    (Hiding, "once a number that the loss captures has changed: the compiled kernels give other"),
])  # fmt: skip
def test_a_field_with_something_wrong_is_told(monkeypatch, make, message):
    monkeypatch.setitem(sys.modules, "hidden", None)
    with pytest.raises(AssertionError, match=message):
        check_compiled(make)
