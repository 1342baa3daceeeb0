"""Settings of a method that is given by name."""

from __future__ import annotations

import pytest

import odeopt
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
