"""Optimisers of one's own in a recorded loop."""

import copy

import pytest
import torch
from support.updates import UPDATES

import odeopt
from odeopt.outer.loop.translations import TRANSLATIONS
from odeopt.testing import relative_error


class Smooth(torch.optim.Optimizer):
    """Lion with a smooth sign, or with parameters' lengths in place of it (whole=True)."""

    def __init__(self, params, lr=0.1, betas=(0.9, 0.8), sharpness=2.0, kind="tanh", extra=0.0):
        own = {"lr": lr, "betas": betas, "sharpness": sharpness, "kind": kind, "extra": extra}
        super().__init__(params, own)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["seen"], state["exp_avg"] = 0, torch.zeros_like(p)
                k, slot = state["seen"], {"m": state["exp_avg"]}
                after, slot = smooth(p.grad, p, slot, k, group["lr"], group)
                p.copy_(after)
                state["exp_avg"] = slot["m"]
                state["seen"] += 1


def smooth(g, u, slot, k, lr, o):
    a, b = o.get("betas", (0.9, 0.8))
    m = slot.get("m", torch.zeros_like(g))
    look = (a * m + (1 - a) * g) / (1 + 0.1 * k)
    sharp = o.get("sharpness", 2.0)
    move = torch.tanh(sharp * look) if o.get("kind", "tanh") == "tanh" else look / norm(look, sharp)
    return u - lr * move, {"m": b * m + (1 - b) * g}


def norm(x, sharp):
    """Of a matrix as a whole; rows count more the later they come, so that its shape counts."""
    weights = torch.arange(1.0, len(x) + 1).reshape(-1, *[1] * (x.ndim - 1))
    return ((weights * x).square().sum() + 1 / sharp).sqrt()


class SmoothRule(odeopt.LeafwiseRule):
    slot_names = ("mean",)
    elementwise = True

    def __init__(self, loss, betas, sharpness, kind):
        super().__init__(loss)
        self.given = {"a": betas[0], "b": betas[1], "sharpness": sharpness}
        self.kind = kind
        if kind != "tanh":
            self.elementwise = False

    def options(self):
        return self.given

    def step(self, k, lr, g, u, slots, options):
        o = {"betas": (options["a"], options["b"]), "sharpness": options["sharpness"]}
        after, slot = smooth(g, u, {"m": slots["mean"]}, k, lr, {**o, "kind": self.kind})
        return after, {"mean": slot["m"]}


@pytest.fixture
def registered(monkeypatch):
    """The optimiser, registered for one test."""
    monkeypatch.setitem(UPDATES, "Smooth", smooth)
    monkeypatch.setattr("odeopt.outer.loop.translations.TRANSLATIONS", dict(TRANSLATIONS))
    odeopt.register_optimizer(
        Smooth, SmoothRule, options=["betas", "sharpness"], flags=["kind"],
        slots={"exp_avg": "mean"}, counter="seen",
    )  # fmt: skip
    return Smooth


@pytest.mark.parametrize("kind", ["tanh", "length"])
def test_its_steps_and_its_gradient_are_those_of_a_plain_loop(problem, registered, kind):
    model, twin = copy.deepcopy(problem.model), copy.deepcopy(problem.model)
    parameters = dict(model.named_parameters())
    sharpness = torch.tensor(1.5, requires_grad=True)
    body, head = list(parameters)[:2], list(parameters)[2:]

    def make(model):
        own = dict(model.named_parameters())
        groups = [
            {"params": [own[name] for name in body], "sharpness": sharpness},
            {"params": [own[name] for name in head], "lr": 0.02, "betas": (0.5, 0.7)},
        ]
        return registered(groups, lr=0.05, kind=kind)

    optimizer, other = make(model), make(twin)
    with odeopt.RecordedLoop(model, optimizer, checkpoints=odeopt.Every(2)) as inner:
        for batch in problem.batches:
            inner.step(problem.mse, batch)
            other.zero_grad()
            problem.mse(twin, batch).backward()
            other.step()
    assert relative_error(list(inner.model.parameters()), list(twin.parameters())) < 1e-13
    rates = torch.tensor([0.05, 0.02], requires_grad=True)
    chosen = dict.fromkeys(body, (rates[0], {"sharpness": sharpness, "kind": kind}))
    chosen |= dict.fromkeys(head, (rates[1], {"betas": (0.5, 0.7), "kind": kind}))
    table = [(problem.mse, (batch,), chosen) for batch in problem.batches]
    values, _, _ = problem.unroll(model, "Smooth", table)
    final = torch.func.functional_call(model, values, (problem.outer[0],))[..., 0]
    value = (final - problem.outer[1]).square().mean()
    expected = torch.autograd.grad(value, [*model.parameters(), sharpness, rates])
    res = inner.backward(problem.mse, problem.outer)
    found = [*(p.grad for p in model.parameters()), sharpness.grad, res.grads.lr.sum(0)]
    assert relative_error(found, list(expected)) < 1e-10


@pytest.mark.parametrize("kind", ["tanh", "length"])
def test_its_state_is_taken_over_and_given_back(problem, registered, kind):
    model, twin = copy.deepcopy(problem.model), copy.deepcopy(problem.model)
    optimizers = [registered(each.parameters(), kind=kind) for each in (model, twin)]

    def train(model, optimizer, batches):
        for batch in batches:
            optimizer.zero_grad()
            problem.mse(model, batch).backward()
            optimizer.step()

    train(model, optimizers[0], problem.batches[:2])
    with odeopt.RecordedLoop(model, optimizers[0]) as inner:
        for batch in problem.batches[2:4]:
            inner.step(problem.mse, batch)
    inner.write_back()
    train(model, optimizers[0], problem.batches[4:])
    train(twin, optimizers[1], problem.batches)
    assert relative_error(list(model.parameters()), list(twin.parameters())) < 1e-13
    assert {state["seen"] for state in optimizers[0].state.values()} == {6}


def test_an_option_that_was_not_registered_must_be_off(problem, registered):
    odeopt.RecordedLoop(problem.model, registered(problem.model.parameters()))
    with pytest.raises(odeopt.CompatibilityError, match=r"Smooth has extra=0\.1"):
        odeopt.RecordedLoop(problem.model, registered(problem.model.parameters(), extra=0.1))


def test_flags_must_be_the_same_in_all_groups(problem, registered):
    first, *rest = problem.model.parameters()
    optimizer = registered([{"params": [first], "kind": "length"}, {"params": rest}])
    with pytest.raises(odeopt.CompatibilityError, match="the groups differ in kind"):
        odeopt.RecordedLoop(problem.model, optimizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Smooth, SmoothRule), "Smooth has a rule already"),
        ((torch.optim.Adam, SmoothRule), "Adam has a rule already"),
        ((SmoothRule, SmoothRule), "expected a subclass of Optimizer"),
        (("Smooth", SmoothRule), "torch_class is 'Smooth'"),
        ((type("Own", (Smooth,), {}), None), "make_rule is None"),
    ],
)
def test_wrong_registrations_are_refused(registered, arguments, message):
    with pytest.raises(odeopt.InputError, match=message):
        odeopt.register_optimizer(*arguments)


def test_a_single_name_is_not_taken_for_several(registered):
    with pytest.raises(odeopt.InputError, match=r"options is 'betas'; .* \['betas'\]"):
        odeopt.register_optimizer(type("Own", (Smooth,), {}), SmoothRule, options="betas")


class Applying(SmoothRule):
    def apply(self, *args):
        return super().apply(*args)


@pytest.mark.parametrize(
    ("make", "own", "message"),
    [
        (SmoothRule, {}, r"slots \['mean'\], and it is not known what Own calls them"),
        (lambda *args, **own: torch.tanh, {}, "expected a LeafwiseRule"),
        (Applying, {"slots": {"exp_avg": "mean"}}, "no apply of its own"),
    ],
)
def test_rules_that_a_loop_cannot_use_are_refused(problem, registered, make, own, message):
    kind = type("Own", (Smooth,), {})
    odeopt.register_optimizer(kind, make, options=["betas", "sharpness"], flags=["kind"], **own)
    with pytest.raises(odeopt.InputError, match=message):
        odeopt.RecordedLoop(problem.model, kind(problem.model.parameters()))
