"""Settings of a method that is given by name, and the tasks that it is given."""

from __future__ import annotations

import pytest
import torch

import odeopt
from odeopt.meta.method import as_task_batch
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

    monkeypatch.setattr(odeopt.METHODS, "_entries", {"theirs": theirs})
    assert isinstance(train(device, {"lr": 0.2}, "theirs").method, odeopt.InnerLoop)
    message = r"method 'theirs': unknown keyword 'rate_lr' \(did you mean 'lr'\?\)"
    with pytest.raises(odeopt.UnknownKeywordError, match=message):
        train(device, {"rate_lr": 0.2}, "theirs")


def test_tasks_are_a_task_batch_or_a_pair(device):
    pair = torch.ones(3, 2, device=device), torch.zeros(3, 2, device=device)
    found = as_task_batch(pair)
    assert (found.train is pair[0], found.validation is pair[1]) == (True, True)
    assert as_task_batch(found) is found
    for wrong in (pair[:1], (*pair, pair[0]), list(pair), None):
        with pytest.raises(odeopt.InputError, match="task_batch is a "):
            as_task_batch(wrong)
    with pytest.raises(odeopt.InputError, match="validation"):
        as_task_batch((pair[0], pair[1][:2]))
