"""Random compositions against unrolled autograd, and the fuzzer itself.

`python -m tests.fuzz --count 2000` checks more. All runs on the CPU, where random numbers and bits
are the same everywhere; gradients on other devices are compared elsewhere.
"""

from random import Random

import pytest
import torch
from support.params import slow_but

import odeopt
from fuzz import Composition, campaign, check, compare, composition, draw, outcome
from fuzz.__main__ import main
from fuzz.build import ADJOINTS, DIFFERENTIATIONS, SOLVERS
from fuzz.problem import NUMBERS
from fuzz.shrink import reproduction, shrink
from odeopt.adjoint.linearize import Differentiation
from odeopt.checkpoint.binomial import Binomial
from odeopt.checkpoint.store import Tier
from odeopt.engine.steppers import SettledStepper, Waits
from odeopt.inner.adam import _Adam
from odeopt.solver.runge_kutta import ExplicitRungeKutta

CHUNK = 20
STEPPED = ("sgd", "adam", "adamw", "rmsprop")
ELSEWHERE = {"adadelta", "adagrad", "adamax", "asgd", "nadam", "radam", "rprop"}
"""Rules that are not drawn: tests/inner compares them with torch and with unrolled autograd."""


@pytest.mark.parametrize("first", slow_but(range(0, 100, CHUNK), 0, 40))
def test_random_compositions_are_those_of_autograd(first):
    found = campaign.run(campaign.drawn(range(first, first + CHUNK)))
    shown = [reproduction(*shrink(c)) for c, _ in found.failures[:1]]
    assert not shown, "\n".join(shown)
    assert found.right > 0.8


def own(registry):
    """The names that odeopt itself has registered; other tests may have added theirs."""
    return {name for name in registry.names() if registry._entries[name].home.startswith("odeopt")}


def kinds(base):
    """The library's own subclasses, without those of other tests."""
    return {kind for kind in base.__subclasses__() if kind.__module__.startswith("odeopt.")}


def test_everything_registered_is_drawn():
    solvers = {name.removesuffix("-fixed") for name in SOLVERS}
    assert own(odeopt.FIELDS) - ELSEWHERE == set(NUMBERS) == set(composition.CHOICES["field"])
    assert own(odeopt.SOLVERS) == solvers
    assert set(SOLVERS) == set(composition.CHOICES["solver"])
    assert own(odeopt.ADJOINTS) == set(ADJOINTS) == set(composition.CHOICES["adjoint"])
    assert own(odeopt.CHECKPOINTS) == set(composition.CHOICES["checkpoints"])
    assert kinds(Differentiation) == set(DIFFERENTIATIONS.values())
    assert set(DIFFERENTIATIONS) == set(composition.CHOICES["differentiation"])
    assert {tier.kind for tier in kinds(Tier)} < set(composition.CHOICES["store"])


def test_two_thousand_draws_hold_every_choice():
    drawn = list(campaign.drawn(range(2000)))
    for name, values in composition.CHOICES.items():
        if name != "observe":
            assert {getattr(c, name) for c in drawn} == set(values), name
    assert {len(c.observe) for c in drawn} == {0, 1, 2, 3}


def test_a_composition_is_made_again_from_its_repr():
    for c in campaign.drawn(range(50)):
        assert eval(repr(c), {"Composition": Composition}) == c
        assert draw(Random(7)) == draw(Random(7))


def wrong_bias_correction(monkeypatch):
    step = _Adam.step
    monkeypatch.setattr(_Adam, "step", lambda self, k, *rest: step(self, k + 1, *rest))


def wrong_sign(monkeypatch):
    pull = ExplicitRungeKutta.pull

    def flipped(self, stepping, t, dt, y0, lam):
        found = pull(self, stepping, t, dt, y0, lam)
        return found._replace(lam=2 * lam - found.lam)

    monkeypatch.setattr(ExplicitRungeKutta, "pull", flipped)


def skipped_step(monkeypatch):
    backward = Binomial.backward

    def shorter(self, n, kept):
        pulls = 0
        for action in backward(self, n, kept):
            pulls += isinstance(action, odeopt.checkpoint.base.Pull)
            if pulls != 2 or not isinstance(action, odeopt.checkpoint.base.Pull):
                yield action

    monkeypatch.setattr(Binomial, "backward", shorter)


def frozen_momentum(monkeypatch):
    step = odeopt.SGD.step

    def frozen(self, k, lr, g, u, slots, options):
        after, moved = step(self, k, lr, g, u, slots, options)
        return after, {name: torch.where(lr == 0, slots[name], moved[name]) for name in moved}

    monkeypatch.setattr(odeopt.SGD, "step", frozen)


def pieces_with_one_noise(monkeypatch):
    monkeypatch.setattr("odeopt.engine.flat.restore_random_state", lambda state: None)


def moving_after_the_stop(monkeypatch):
    make = SettledStepper.__init__

    def never_waiting(self, grid, moves_at_zero, made=None):
        make(self, grid, moves_at_zero, made)
        if moves_at_zero:
            self.waits = Waits(torch.zeros_like(self._is_made), length_counts=False)

    monkeypatch.setattr(SettledStepper, "__init__", never_waiting)


def times_without_gradient(monkeypatch):
    pull = ExplicitRungeKutta.pull

    def timeless(self, *args):
        found = pull(self, *args)
        return found._replace(t=torch.zeros_like(found.t))

    monkeypatch.setattr(ExplicitRungeKutta, "pull", timeless)


MISTAKES = {
    wrong_bias_correction: lambda c: c.field in ("adam", "adamw"),
    wrong_sign: lambda c: c.field not in STEPPED,
    skipped_step: lambda c: c.checkpoints == "binomial",
    frozen_momentum: lambda c: c.field == "sgd",
    pieces_with_one_noise: lambda c: c.micro_batches > 1 and c.random,
    moving_after_the_stop: lambda c: c.field in STEPPED and c.stops,
    times_without_gradient: lambda c: c.field == "nesterov-flow",
}
"""What is done to odeopt, and the compositions that need a look (the others take time alone)."""


def first_failure(concerned):
    candidates = filter(concerned, campaign.drawn(range(300)))
    return next(c for c in candidates if outcome(c).failed)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_found_among_three_hundred_compositions(monkeypatch, mistake):
    mistake(monkeypatch)
    c = first_failure(MISTAKES[mistake])
    monkeypatch.undo()
    assert outcome(c).kind == "right"


def test_what_fails_is_made_simpler(monkeypatch):
    frozen_momentum(monkeypatch)
    c = first_failure(MISTAKES[frozen_momentum])
    small, found = shrink(c)
    assert found.kind == "wrong"
    assert len(small.changes()) < len(c.changes())
    assert small.steps <= 4
    assert {"field", "rates"} < set(small.changes())
    assert len(small.changes()) <= 6
    with pytest.raises(compare.MismatchError):
        check(small)
    script = reproduction(small, found)
    assert f"check({small!r})" in script
    assert "odeopt:" in script
    assert "reference:" in script


def test_numbers_that_are_not_compared_do_not_count_as_right():
    one = torch.ones(3)
    assert compare._error(one, 2 * one) == 0.5
    assert not compare._error(one * torch.nan, one) <= compare.TOLERANCE
    with pytest.raises(compare.MismatchError):
        compare._error(one, one[:2])


def test_the_command_reports_what_it_has_done(monkeypatch, capsys, tmp_path):
    report = tmp_path / "report.md"
    monkeypatch.setattr("sys.argv", ["fuzz", "--count", "3", "--report", str(report)])
    assert main() == 0
    assert "3 compositions" in report.read_text()
    assert report.read_text() in capsys.readouterr().out


def test_the_command_fails_with_a_reproduction(monkeypatch, capsys):
    wrong_bias_correction(monkeypatch)
    monkeypatch.setattr("fuzz.__main__.drawn", lambda seeds: [Composition(field="adam", steps=2)])
    monkeypatch.setattr("sys.argv", ["fuzz", "--count", "1"])
    assert main() == 1
    assert "check(Composition(" in capsys.readouterr().out
