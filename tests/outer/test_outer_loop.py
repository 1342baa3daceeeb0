"""The outer loop by itself: what moves, how far, at which rate, and what it says."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

import odeopt
from odeopt.outer import OuterGradient, OuterLoop, OuterObjective

SCHEDULES = {
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 2, 0.5),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=6),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=8),
    "function": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (k + 1)),
    "two in turn": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, total_iters=3),
         lr_scheduler.ExponentialLR(optimizer, 0.9)],
        milestones=[3],
    ),
}  # fmt: skip


class Bowl(OuterObjective):
    """The squared distance from points that come in turn."""

    def __init__(self, device, scale=1.0, validations=()):
        self.device, self.scale = device, scale
        self.validations = list(validations)

    def draw(self, update):
        return torch.tensor([1.0, -2.0], device=self.device) * (1 + update % 3)

    def gradient(self, learned, drawn):
        gap = learned["x"] - drawn
        return OuterGradient(gap.square().sum(), {"x": 2 * self.scale * gap, "note": "kept"})

    def validation(self, learned):
        return self.validations.pop(0) if self.validations else None

    def about(self, drawn):
        return f", at {drawn.tolist()}"


def begin(device):
    return {"x": torch.tensor([0.5, 0.5], device=device), "note": "kept"}


def sgd(leaves):
    return torch.optim.SGD(leaves, lr=0.1, momentum=0.5)


@pytest.mark.parametrize("clip", [None, 2.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_it_is_the_loop_that_one_would_write(device, name, clip):
    loop = OuterLoop(Bowl(device), begin(device), sgd, schedule=SCHEDULES[name], clip=clip)
    steps = loop.fit(7)
    x, bowl = begin(device)["x"], Bowl(device)
    optimizer = sgd([x])
    schedule = SCHEDULES[name](optimizer)
    for k, step in enumerate(steps):
        before = x.clone()
        x.grad = bowl.gradient({"x": x}, bowl.draw(k)).grads["x"]
        norm = x.grad.norm().item()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([x], clip)
        optimizer.step()
        schedule.step()
        assert step.grad_norm == pytest.approx(norm)
        assert step.change == pytest.approx((x - before).norm().item())
        assert 0 < step.seconds < 60
    assert torch.allclose(loop.learned["x"], x, rtol=1e-6)
    assert loop.learned["note"] == "kept"


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_where_it_was(tmp_path, device, name):
    def make(folder):
        return OuterLoop(Bowl(device), begin(device), sgd, schedule=SCHEDULES[name], folder=folder)

    whole = make(None)
    whole.fit(6)
    make(tmp_path).fit(4)
    again = make(tmp_path)
    assert again.restore()
    again.fit(6)
    assert torch.equal(again.learned["x"], whole.learned["x"])
    assert [step.update for step in again.history()] == list(range(6))


def test_another_schedule_does_not_go_on(tmp_path, device):
    def make(schedule):
        return OuterLoop(Bowl(device), begin(device), sgd, schedule=schedule, folder=tmp_path)

    make(SCHEDULES["step"]).fit(2)
    for schedule in (None, SCHEDULES["cosine"]):
        with pytest.raises(odeopt.InputError, match=r"differs in .*the schedule"):
            make(schedule).restore()


def test_a_plateau_is_one_of_the_validation(device):
    """Two validations that are no better than the first, at every other update."""
    rates = []
    bowl = Bowl(device, validations=[1.0, 1.0, 1.0, 1.0])
    loop = OuterLoop(
        bowl, begin(device), sgd, validate_every=2,
        schedule=lambda opt: lr_scheduler.ReduceLROnPlateau(opt, factor=0.1, patience=1),
        callback=lambda step: rates.append(loop._optimizer.param_groups[0]["lr"]),
    )  # fmt: skip
    loop.fit(8)
    assert rates == pytest.approx([0.1] * 5 + [0.01] * 3)


def test_validations_are_every_so_often_and_at_the_end(device):
    bowl = Bowl(device, validations=[3.0, 2.0, 1.0])
    steps = OuterLoop(bowl, begin(device), sgd, validate_every=3).fit(7)
    assert [step.validation for step in steps] == [None, None, 3.0, None, None, 2.0, 1.0]


def test_it_stops_where_hardly_anything_moves(device):
    loop = OuterLoop(Bowl(device), begin(device), lambda x: torch.optim.SGD(x, lr=1e-9))
    assert len(loop.fit(5, tolerance=1e-3)) == 1
    assert loop.updates == 1


def test_a_huge_gradient_in_single_precision_has_a_norm(device):
    x = torch.zeros(2, dtype=torch.float32, device=device)
    loop = OuterLoop(Bowl(device, scale=1e30), {"x": x, "note": "kept"}, sgd, clip=1.0)
    (step,) = loop.fit(1)
    assert step.grad_norm == pytest.approx(2e30 * 5**0.5, rel=1e-6)
    assert loop.learned["x"].norm().item() == pytest.approx(0.1, rel=1e-6)


def test_a_gradient_that_is_not_finite_is_refused_by_its_update(device):
    loop = OuterLoop(Bowl(device, scale=torch.nan), begin(device), sgd)
    with pytest.raises(odeopt.DivergenceError, match="outer gradient of update 0 is not finite"):
        loop.fit(2)


def test_an_error_says_in_which_update(device):
    class Failing(Bowl):
        def gradient(self, learned, drawn):
            raise odeopt.StepLimitError("too many")

    with pytest.raises(odeopt.StepLimitError) as caught:
        OuterLoop(Failing(device), begin(device), sgd).fit(1)
    assert caught.value.__notes__ == ["in update 0, at [1.0, -2.0]"]


def test_tasks_that_failed_are_named(device):
    class Partial(Bowl):
        def gradient(self, learned, drawn):
            found = super().gradient(learned, drawn)
            return OuterGradient(found.value, found.grads, ("sine 3 (DIVERGED)",))

    with pytest.warns(odeopt.OdeoptWarning, match=r"update 0 left out: sine 3 \(DIVERGED\)"):
        (step,) = OuterLoop(Partial(device), begin(device), sgd).fit(1)
    assert step.failed == ("sine 3 (DIVERGED)",)


@pytest.mark.parametrize(("schedule", "said"), [
    (lambda optimizer: None, "schedule returned a NoneType"),
    (lambda optimizer: optimizer, "schedule returned a SGD"),
    (lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), 1), "schedule is a StepLR"),
])  # fmt: skip
def test_a_schedule_is_made_by_a_function(device, schedule, said):
    with pytest.raises(odeopt.InputError, match=f"{said}; expected a function that makes"):
        OuterLoop(Bowl(device), begin(device), sgd, schedule=schedule)


def test_what_was_given_is_not_moved(device):
    given = begin(device)
    loop = OuterLoop(Bowl(device), given, sgd)
    loop.fit(2)
    assert torch.equal(given["x"], begin(device)["x"])
    assert not torch.equal(loop.learned["x"], given["x"])
