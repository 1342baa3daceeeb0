"""What a learner is given: settings of a method by name, the outer optimiser, and tasks."""

from __future__ import annotations

import pytest
import torch

import odeopt
from odeopt.outer.method import as_task_batch
from odeopt.registry import Registration
from odeopt.testing import smooth_problem


def train(device, settings, method="maml"):
    problem = smooth_problem(device)
    model = odeopt.ModuleLoss(problem.params, None, problem.loss)
    tasks = odeopt.TaskPool(problem.batch, problem.outer_batch)
    return odeopt.MetaLearner(method, model, tasks, settings=settings)


@pytest.mark.parametrize("name", odeopt.METHODS.names())
def test_an_unknown_setting_of_any_method_is_refused(device, name):
    with pytest.raises(odeopt.UnknownKeywordError, match=r"'bogus'; expected one of .*horizon"):
        train(device, {"bogus": 3}, name)


@pytest.mark.parametrize(("given", "meant"), [
    ("inner_lr", "lr"), ("learning_rate", "lr"), ("num_steps", "steps"), ("on_fail", "on_failure"),
    ("compiled", "compile"), ("checkpoint", "checkpoints"),
])  # fmt: skip
def test_an_unknown_setting_leads_to_the_one_that_was_meant(device, given, meant):
    message = rf"maml: unknown keyword '{given}' \(did you mean '{meant}'\?\); expected one of loss"
    with pytest.raises(odeopt.UnknownKeywordError, match=message):
        train(device, {given: 1})
    with pytest.raises(odeopt.UnknownKeywordError, match=message):
        odeopt.METHODS.get("maml")(abs, **{given: 1})


def test_a_method_of_others_is_checked_as_well(device, monkeypatch):
    maml = odeopt.METHODS.get("maml")

    def theirs(loss, outer_loss=None, *, lr=0.1):
        return maml(loss, outer_loss, lr=lr)

    registered = Registration(theirs, theirs, __name__)
    monkeypatch.setattr(odeopt.METHODS, "_entries", {"theirs": registered})
    assert isinstance(train(device, {"lr": 0.2}, "theirs").method, odeopt.InnerLoop)
    message = r"method 'theirs': unknown keyword 'rate_lr' \(did you mean 'lr'\?\)"
    with pytest.raises(odeopt.UnknownKeywordError, match=message):
        train(device, {"rate_lr": 0.2}, "theirs")


@pytest.mark.parametrize(("optimizer", "met"), [
    (torch.optim.Adam([torch.ones(2)]), "is a Adam"), ("adam", "is a str"), (None, "is a NoneType"),
    (lambda leaves: None, "returned a NoneType"),
])  # fmt: skip
def test_an_outer_optimizer_is_made_by_a_function(device, optimizer, met):
    problem = smooth_problem(device)
    tasks = odeopt.TaskPool(problem.batch, problem.outer_batch)
    message = rf"optimizer {met}; expected a function that makes .*lambda leaves"
    with pytest.raises(odeopt.InputError, match=message):
        odeopt.MetaLearner("maml", problem.params, tasks, optimizer, loss=problem.loss)


def test_so_is_that_of_a_bilevel_problem(device):
    def loss(params, batch, hparams):
        return (params - hparams * batch).square().sum()

    grid, x = odeopt.TimeGrid.from_lr(0.1, 2), torch.ones(2, device=device)
    problem = odeopt.BilevelProblem(odeopt.GradientFlow(loss), loss, grid)
    with pytest.raises(odeopt.InputError, match="optimizer is a SGD; expected a function"):
        problem.minimize(x, x, x, x, 1, optimizer=torch.optim.SGD([x], 0.1))


def test_tasks_are_a_task_batch_or_a_pair(device):
    pair = torch.ones(3, 2, device=device), torch.zeros(3, 2, device=device)
    found = as_task_batch(pair)
    assert (found.train is pair[0], found.validation is pair[1]) == (True, True)
    assert as_task_batch(found) is found
    assert as_task_batch(((), pair[1])).train == ()
    for wrong in (pair[:1], (*pair, pair[0]), list(pair), None):
        with pytest.raises(odeopt.InputError, match="task_batch is a "):
            as_task_batch(wrong)
    with pytest.raises(odeopt.InputError, match="validation"):
        as_task_batch((pair[0], pair[1][:2]))


@pytest.mark.parametrize(("name", "wrong"), [
    ("clip", 0.0), ("clip", -1.0), ("clip", float("nan")), ("validate_every", 0),
    ("validate_every", True), ("checkpoint_every", 1.5), ("tasks", None),
])  # fmt: skip
def test_a_setting_that_cannot_be_used_is_refused(device, name, wrong):
    problem = smooth_problem(device)
    settings = {"tasks": odeopt.TaskPool(problem.batch, problem.outer_batch), name: wrong}
    with pytest.raises(odeopt.InputError, match=rf"^{name} is .*; expected"):
        odeopt.MetaLearner("maml", problem.params, loss=problem.loss, **settings)
