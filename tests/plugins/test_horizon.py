"""Horizons of each task's own: where the validation loss is least."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from odeopt_plugins.a_maml import a_maml
from odeopt_plugins.anil import ANIL
from odeopt_plugins.maml import fomaml, maml
from odeopt_plugins.meta_sgd import MetaSGD

import odeopt
from odeopt import TaskHorizon


def stop_of(looks, values, patience):
    """Early stopping as one would write it for a single task."""
    best, where, waited = float("inf"), 0, 0
    for look, value in zip(looks, values, strict=True):
        if value < best:
            best, where, waited = value, look, 0
        else:
            waited += 1
        if waited == patience:
            break
    return where


@given(steps=st.integers(0, 40), every=st.integers(1, 50))
def test_looks(steps, every):
    found = TaskHorizon(every=every).looks(steps)
    assert found == sorted(set(found))
    assert set(found) == {k for k in range(steps) if k % every == 0} | {steps}


@given(data=st.data(), patience=st.integers(1, 6), every=st.integers(1, 4), tasks=st.integers(1, 4))
def test_choose_is_early_stopping(data, patience, every, tasks, device):
    """Not finite values count as bad, and equal values as no progress."""
    horizon = TaskHorizon(every=every, patience=patience)
    looks = horizon.looks(data.draw(st.integers(0, 25)))
    value = st.one_of(st.floats(0, 1), st.integers(0, 3).map(float), st.just(float("nan")))
    first = st.lists(st.floats(0, 3), min_size=tasks, max_size=tasks)
    later = st.lists(value, min_size=tasks, max_size=tasks)
    rows = [data.draw(first), *(data.draw(later) for _ in looks[1:])]
    found = horizon.choose(looks, torch.tensor(rows, device=device))
    expected = [stop_of(looks, [row[k] for row in rows], patience) for k in range(tasks)]
    assert found.tolist() == expected


def test_patience_lets_a_later_minimum_go():
    looks, values = [0, 1, 2, 3, 4, 5], torch.tensor([[3.0], [2.0], [2.5], [2.4], [2.3], [1.0]])
    assert TaskHorizon(every=1, patience=3).choose(looks, values).tolist() == [1]
    assert TaskHorizon(every=1, patience=4).choose(looks, values).tolist() == [5]


@pytest.mark.parametrize("wrong", [{"every": 0}, {"patience": 0}, {"every": 1.5}, {"every": True}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(odeopt.InputError, match="integer of at least 1"):
        TaskHorizon(**wrong)


METHODS = {
    "maml": lambda few, **kw: maml(few.loss, few.outer, lr=0.1, **kw),
    "fomaml": lambda few, **kw: fomaml(few.loss, few.outer, lr=0.1, **kw),
    "meta-sgd": lambda few, **kw: MetaSGD(few.loss, few.outer, lr=0.1, **kw),
    "anil": lambda few, **kw: ANIL(few.loss, few.outer, head=["out", "shift"], lr=0.1, **kw),
}


@given(
    name=st.sampled_from(sorted(METHODS)), seed=st.integers(0, 10_000), learned=st.booleans(),
    steps=st.integers(1, 14), every=st.integers(1, 4), patience=st.integers(1, 4),
)  # fmt: skip
def test_each_task_has_the_gradient_of_its_own_number_of_steps(
    name, seed, learned, steps, every, patience, few, device
):
    params, batch, hparams = few.draw(seed, 4, device)
    horizon = TaskHorizon(every=every, patience=patience)
    method = METHODS[name](few, steps=steps, horizon=horizon)
    hparams = method.init_hparams(params, hparams if learned else None)
    res = method(params, batch, hparams)
    looks = horizon.looks(steps)
    values = [METHODS[name](few, steps=k).evaluate(params, batch, hparams) for k in looks]
    alone = []
    for task in range(4):
        stop = stop_of(looks, [float(value[task]) for value in values], patience)
        short = METHODS[name](few, steps=stop)
        alone.append(short(params, few.at(batch, [task]), hparams))
    mean = {
        k: torch.stack([one.grads.params[k] for one in alone]).mean(0) for k in res.grads.params
    }
    few.assert_equal(res, torch.cat([one.values for one in alone]), (mean,), 1e-12)


@pytest.mark.slow
def test_a_maml_stops_each_task_too(few, device):
    """Against runs over the beginning of the same grid."""
    params, batch, _ = few.draw(0, 3, device)
    horizon = TaskHorizon(every=4, patience=2)
    settings = {"lr": 0.05, "solver": odeopt.Adaptive(1e-8, 1e-10)}
    res = a_maml(few.loss, few.outer, steps=20, horizon=horizon, **settings)(params, batch)
    looks = horizon.looks(20)
    values = [
        a_maml(few.loss, few.outer, steps=k, **settings).evaluate(params, batch) for k in looks
    ]
    alone = []
    for task in range(3):
        stop = stop_of(looks, [float(value[task]) for value in values], 2)
        short = a_maml(few.loss, few.outer, steps=stop, **settings)
        alone.append(short(params, few.at(batch, [task])))
    mean = {k: torch.stack([one.grads.params[k] for one in alone]).mean(0) for k in params}
    few.assert_equal(res, torch.cat([one.values for one in alone]), (mean,), 1e-6)


def test_a_task_that_diverges_late_stops_before(device):
    """Its losses are least at the start, the other's at the end."""
    curvature = torch.tensor([1.0, 400.0], device=device)
    loss = lambda u, batch: (batch * u.square()).sum() / 2  # noqa: E731
    params = torch.ones(1, device=device)
    method = maml(loss, lr=0.1, steps=300, horizon=TaskHorizon(every=100, patience=2))
    res = method(params, (curvature, curvature))
    assert res.status.tolist() == [odeopt.Status.OK] * 2
    assert float(res.values[0]) < 1e-12
    assert float(res.values[1]) == 200.0
    assert abs(float(res.grads.params) - 200.0) < 1e-10  # half of 400
    with pytest.raises(odeopt.DivergenceError):
        maml(loss, lr=0.1, steps=300)(params, (curvature, curvature))


def test_the_search_for_the_horizon_is_counted(few, device):
    params, batch, hparams = few.draw(0, 3, device)
    plain = maml(few.loss, few.outer, lr=0.1, steps=6)(params, batch, hparams)
    searched = maml(few.loss, few.outer, lr=0.1, steps=6, horizon=TaskHorizon(every=2))
    found = searched(params, batch, hparams)
    assert plain.stats.gradient_evaluations == 6
    assert found.stats.gradient_evaluations == 12
