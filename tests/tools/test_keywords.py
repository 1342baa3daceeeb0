"""Unknown names are refused, with the one that was meant."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle

import pytest

import odeopt
from odeopt.adjoint import LocalAdjoint
from odeopt.checkpoint import CheckpointSchedule
from odeopt.solver import StepSolver
from odeopt.tools.keywords import KnownKeywords, keywords_of, nearest, unknown

REGISTRIES = (odeopt.FIELDS, odeopt.SOLVERS, odeopt.ADJOINTS, odeopt.CHECKPOINTS, odeopt.METHODS)
KNOWN = ("loss", "outer_loss", "lr", "steps", "weight_decay", "on_failure")
CHOICES = [
    odeopt.SGD(abs, momentum=0.5), odeopt.GradientFlow(abs), odeopt.Adaptive(rtol=1e-3),
    odeopt.TruncatedAdjoint(4), odeopt.ReverseMode(), odeopt.Neumann(3, rate=0.1),
    odeopt.Every(k=3), odeopt.Device(), odeopt.DormandPrince(atol=1e-3),
]  # fmt: skip


class Plain(KnownKeywords):
    pass


class Own(Plain):
    def __init__(self, here, /, one, *, two=2):
        self.values = (here, one, two)


class Anything(Plain):
    def __init__(self, **keywords):
        self.keywords = keywords


@pytest.mark.parametrize(("given", "meant"), [
    ("stpes", "steps"), ("on_failur", "on_failure"), ("LR", "lr"), ("inner_lr", "lr"),
    ("learning_rate", "lr"), ("decay", "weight_decay"), ("loss_fn", "loss"), ("num_steps", "steps"),
    ("s", None), ("bogus", None), ("", None), ("_", None), ("alright", None),
])  # fmt: skip
def test_the_nearest_name_is_the_one_that_was_meant(given, meant):
    assert nearest(given, KNOWN) == meant
    assert nearest(given, ()) is None


def test_names_without_letters_are_near_to_nothing():
    assert nearest("steps", ("+", "")) is None


def test_the_message_names_each_with_its_nearest_and_lists_all():
    assert unknown("option", ["inner_lr", 3], ("lr", "steps")) == (
        "unknown option 'inner_lr' (did you mean 'lr'?), '3'; expected one of lr, steps."
    )
    assert unknown("option", ["x"], ()) == "unknown option 'x'; expected none."
    assert "(did you mean 'maml'?)" in unknown("cell", ["mamml"], ["'a maml'"], near=["maml"])


@pytest.mark.parametrize(("make", "message"), [
    (lambda: odeopt.Adam(abs, weight_decy=0.1), "Adam: .* 'weight_decy' .*'weight_decay'"),
    (lambda: odeopt.GradientFlow(abs, decay=0.1), "GradientFlow: .*'weight_decay'.* loss, weight"),
    (lambda: odeopt.Adaptive(tol=1e-3), "Adaptive: unknown keyword 'tol' .*one of rtol, atol"),
    (lambda: odeopt.ADJOINTS.get("continuous-rk4")(solvr=1), "ContinuousAdjoint: .* 'solver'"),
    (lambda: odeopt.TruncatedAdjoint(latest=3), "TruncatedAdjoint: unknown keyword 'latest'"),
    (lambda: odeopt.Every(store_=None), "Every: .* 'store_' .*'store'"),
    (lambda: odeopt.Disk(".", resumed=True), "Disk: .* 'resumed' .*'resume'"),
    (lambda: odeopt.Device(pinned=True), "Device: unknown keyword 'pinned'; expected none"),
    (lambda: odeopt.ForwardOverReverse(x=1), "ForwardOverReverse: unknown .*'x'; expected none"),
    (lambda: odeopt.ConjugateGradient(step=3), "ConjugateGradient: .* 'step' .*'steps'"),
    (lambda: odeopt.Torchdiffeq(metod="rk4"), "Torchdiffeq: .* 'metod' .*'method'"),
    (lambda: odeopt.InnerLoop(None, None, on_fail=1), "InnerLoop: .* 'on_fail' .*'on_failure'"),
])  # fmt: skip
def test_unknown_keywords_of_the_choices_are_refused(make, message):
    with pytest.raises(odeopt.UnknownKeywordError, match=message):
        make()


@pytest.mark.parametrize(
    ("registry", "name"),
    [pytest.param(r, n, id=f"{r.kind}-{n}") for r in REGISTRIES for n in r.names()],
)
def test_everything_that_is_registered_refuses_what_it_does_not_know(registry, name):
    with pytest.raises(odeopt.UnknownKeywordError, match="unknown keyword 'no_such_thing'"):
        registry.get(name)(no_such_thing=1)


def test_the_error_is_a_type_error_and_an_input_error():
    for kind in (TypeError, ValueError, odeopt.InputError):
        with pytest.raises(kind, match="unknown keyword 'x'"):
            odeopt.ReverseMode(x=1)


def test_known_keywords_are_passed_on():
    assert Own(0, one=1, two=3).values == (0, 1, 3)
    assert Anything(here=1, self_=2).keywords == {"here": 1, "self_": 2}
    with pytest.raises(odeopt.UnknownKeywordError, match=r"'here'; expected one of one, two"):
        Own(0, one=1, here=2)


def test_what_is_missing_is_still_said_by_python():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'one'"):
        Own(0, two=3)


def test_a_class_without_a_constructor_takes_nothing():
    assert type(Plain()) is Plain
    with pytest.raises(TypeError, match=r"Plain\(\) takes no arguments"):
        Plain(1)
    with pytest.raises(TypeError, match=r"ReverseMode\(\) takes no arguments"):
        odeopt.ReverseMode(True)


@pytest.mark.parametrize("entry", [odeopt.Field, StepSolver, CheckpointSchedule, LocalAdjoint])
def test_an_abstract_class_says_that_it_is_one(entry):
    with pytest.raises(TypeError, match="abstract") as caught:
        entry(x=1)
    assert not isinstance(caught.value, odeopt.OdeoptError)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: type(choice).__name__)
def test_choices_can_be_copied_and_pickled(choice):
    for made in (copy.copy(choice), copy.deepcopy(choice)):
        assert type(made) is type(choice)
        assert vars(made).keys() == vars(choice).keys()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(choice, protocol))
        assert type(again) is type(choice)
        assert vars(again).keys() == vars(choice).keys()


def test_a_dataclass_is_replaced_with_known_fields_only():
    neumann = odeopt.Neumann(3, rate=0.1)
    assert dataclasses.replace(neumann, steps=4) == odeopt.Neumann(4, 0.1)
    with pytest.raises(odeopt.UnknownKeywordError, match="'rates'"):
        dataclasses.replace(neumann, rates=0.2)


def test_other_bases_get_what_they_take():
    class Base:
        def __init__(self, size):
            self.size = size

    class Later(Plain, Base):
        pass

    class Pair(Plain, tuple):
        pass

    class Made(Plain):
        def __new__(cls, size):
            made = super().__new__(cls)
            made.size = size
            return made

    assert Later(size=3).size == 3
    assert Pair((1, 2)) == (1, 2)
    assert Made(size=3).size == 3
    with pytest.raises(odeopt.UnknownKeywordError, match=r"'siez' .*'size'"):
        Later(siez=3)


def test_signatures_are_those_of_the_classes_themselves():
    assert str(inspect.signature(odeopt.ReverseMode)) == "()"
    assert list(inspect.signature(odeopt.Adaptive).parameters)[:2] == ["rtol", "atol"]
    assert str(inspect.signature(Own)) == "(here, /, one, *, two=2)"


def test_what_has_no_signature_takes_anything():
    assert keywords_of(dict).open
    assert not keywords_of(Own).open
