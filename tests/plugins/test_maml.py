"""MAML and its relatives against autograd through the unrolled loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from odeopt_plugins.anil import ANIL
from odeopt_plugins.maml import fomaml, maml, maml_1, truncated_maml
from odeopt_plugins.meta_sgd import MetaSGD
from support.params import slow_without

import odeopt
from odeopt import METHODS, Binomial, TaskBatch

NAMES = ("hidden", "bias", "out", "shift")
seeds = st.integers(0, 10_000)
tasks_ = st.integers(1, 4)
rates = st.floats(1e-3, 0.15)
learned = st.booleans()


def objective(few, lr, steps):
    """The validation loss after plain gradient descent."""

    def end(train, validation, params, hparams=None):
        adapted = few.descend(lambda u: few.loss(u, train, hparams), params, lr, steps)
        return few.outer(adapted, validation, hparams)

    return end


def inputs(params, hparams, learned):
    return (params, hparams) if learned else (params,)


@given(seed=seeds, tasks=tasks_, lr=rates, steps=st.integers(1, 7), learned=learned)
def test_maml_equals_autograd(seed, tasks, lr, steps, learned, few, device):
    params, batch, hparams = few.draw(seed, tasks, device)
    given = inputs(params, hparams, learned)
    values, grads = few.autograd(objective(few, lr, steps), batch, *given)
    for checkpoints in (None, Binomial(2)):
        method = maml(few.loss, few.outer, lr=lr, steps=steps, checkpoints=checkpoints)
        few.assert_equal(method(params, batch, *given[1:]), values, grads)


@given(seed=seeds, tasks=tasks_, lr=rates, learned=learned)
def test_maml_1_equals_autograd(seed, tasks, lr, learned, few, device):
    params, batch, hparams = few.draw(seed, tasks, device)
    given = inputs(params, hparams, learned)
    values, grads = few.autograd(objective(few, lr, 1), batch, *given)
    res = maml_1(few.loss, few.outer, lr=lr)(params, TaskBatch(*batch), *given[1:])
    few.assert_equal(res, values, grads)


@given(
    seed=seeds, tasks=tasks_, lr=rates, steps=st.integers(1, 6), last=st.integers(1, 8),
    learned=learned,
)  # fmt: skip
def test_truncated_maml_equals_autograd_with_a_detach(
    seed, tasks, lr, steps, last, learned, few, device
):
    params, batch, hparams = few.draw(seed, tasks, device)
    given = inputs(params, hparams, learned)
    early = max(steps - last, 0)

    def end(train, validation, params, hparams=None):
        fixed = None if hparams is None else {k: v.detach() for k, v in hparams.items()}
        start = {k: v.detach().requires_grad_() for k, v in params.items()}
        reached = few.descend(lambda u: few.loss(u, train, fixed), start, lr, early)
        middle = {k: reached[k].detach() + params[k] - params[k].detach() for k in params}
        rest = few.descend(lambda u: few.loss(u, train, hparams), middle, lr, steps - early)
        return few.outer(rest, validation, hparams)

    values, grads = few.autograd(end, batch, *given)
    method = truncated_maml(few.loss, few.outer, lr=lr, steps=steps, last=last)
    few.assert_equal(method(params, batch, *given[1:]), values, grads)


@given(seed=seeds, tasks=tasks_, lr=rates, steps=st.integers(1, 6), learned=learned)
def test_fomaml_is_the_gradient_at_the_end(seed, tasks, lr, steps, learned, few, device):
    params, batch, hparams = few.draw(seed, tasks, device)
    given = inputs(params, hparams, learned)

    def end(train, validation, params, hparams=None):
        start = few.requiring_grad(params)
        fixed = None if hparams is None else few.requiring_grad(hparams)
        reached = few.descend(lambda u: few.loss(u, train, fixed), start, lr, steps)
        final = {k: reached[k].detach() + params[k] - params[k].detach() for k in params}
        return few.outer(final, validation, hparams)

    values, grads = few.autograd(end, batch, *given)
    method = fomaml(few.loss, few.outer, lr=lr, steps=steps)
    few.assert_equal(method(params, batch, *given[1:]), values, grads)


@given(seed=seeds, tasks=tasks_, steps=st.integers(1, 5), learned=learned)
def test_meta_sgd_equals_autograd(seed, tasks, steps, learned, few, device):
    params, batch, hparams = few.draw(seed, tasks, device)
    method = MetaSGD(few.loss, few.outer, lr=0.03, steps=steps)
    mine = method.init_hparams(params, hparams if learned else None)
    random = torch.Generator().manual_seed(seed)
    for name, rate in mine["lr"].items():
        assert torch.equal(rate, torch.full_like(params[name], 0.03))
        mine["lr"][name] = rate + 0.05 * torch.rand(rate.shape, generator=random).to(device)

    def end(train, validation, params, rates, hparams=None):
        adapted = few.descend(lambda u: few.loss(u, train, hparams), params, rates, steps)
        return few.outer(adapted, validation, hparams)

    given = (params, mine["lr"], *inputs(params, hparams, learned)[1:])
    values, grads = few.autograd(end, batch, *given)
    res = method(params, batch, mine)
    few.assert_equal(res, values, grads[:1])
    assert few.relative(res.grads.hparams["lr"], grads[1]) <= 1e-10
    if learned:
        assert few.relative(res.grads.hparams["loss"], grads[2]) <= 1e-10


@given(
    seed=seeds, tasks=tasks_, lr=rates, steps=st.integers(1, 5), learned=learned,
    head=st.sets(st.sampled_from(NAMES), min_size=1),
)  # fmt: skip
def test_anil_equals_autograd(seed, tasks, lr, steps, learned, head, few, device):
    params, batch, hparams = few.draw(seed, tasks, device)
    given = inputs(params, hparams, learned)

    def end(train, validation, params, hparams=None):
        body = {k: v for k, v in params.items() if k not in head}
        start = {k: v for k, v in params.items() if k in head}
        inner = lambda u: few.loss(body | u, train, hparams)  # noqa: E731
        return few.outer(body | few.descend(inner, start, lr, steps), validation, hparams)

    values, grads = few.autograd(end, batch, *given)
    method = ANIL(few.loss, few.outer, head=sorted(head), lr=lr, steps=steps)
    res = method(params, batch, *given[1:])
    few.assert_equal(res, values, grads)
    assert list(res.grads.params) == list(params)
    adapted = method.adapt(params, batch[0], *given[1:])
    for name in NAMES:
        start = params[name].expand_as(adapted[name])
        assert torch.equal(adapted[name], start) == (name not in head)


@pytest.mark.parametrize("head", [(), ("nothing",)])
def test_anil_refuses_a_head_that_is_not_there(head, few, device):
    params, batch, _ = few.draw(0, 2, device)
    with pytest.raises(odeopt.InputError, match="head is"):
        ANIL(few.loss, head=head)(params, batch)


@pytest.mark.filterwarnings("ignore")  # of the package higher
@given(seed=seeds, tasks=tasks_, lr=rates, steps=st.integers(1, 6))
def test_maml_equals_higher(seed, tasks, lr, steps, few, device):
    higher = pytest.importorskip("higher")
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    model = model.to(device)
    _, batch, _ = few.draw(seed, tasks, device)

    def mse(model, batch):
        return (model(batch[0])[:, 0] - batch[1]).square().mean()

    given = odeopt.from_module(model, mse)
    res = maml(given.loss, lr=lr, steps=steps)(given.params, batch)
    sgd = torch.optim.SGD(model.parameters(), lr=lr)
    values = []
    for task in range(tasks):
        train, validation = few.at(batch, task)
        with higher.innerloop_ctx(model, sgd, copy_initial_weights=False) as (copy, inner):
            for _ in range(steps):
                inner.step(mse(copy, train))
            values.append(mse(copy, validation))
            (values[-1] / tasks).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    few.assert_equal(res, torch.stack(values).detach(), (expected,))


@given(seed=seeds, lr=rates, steps=st.integers(1, 6))
def test_adapt_is_gradient_descent_and_evaluate_its_loss(seed, lr, steps, few, device):
    params, batch, hparams = few.draw(seed, 3, device)
    for make in (maml, fomaml, truncated_maml):
        method = make(few.loss, few.outer, lr=lr, steps=steps)
        adapted = method.adapt(params, batch[0], hparams)
        values = method.evaluate(params, batch, hparams)
        for task in range(3):
            train, validation = few.at(batch, task)
            inner = lambda u, train=train: few.loss(u, train, hparams)  # noqa: E731
            expected = few.descend(inner, few.requiring_grad(params), lr, steps)
            assert few.relative(few.at(adapted, task), expected) <= 1e-12
            value = few.outer(expected, validation, hparams)
            assert few.relative(values[task], value) <= 1e-12


SKIPPING = [name for name in METHODS.names() if name != "comln"]


def settings(name):
    if name == "anil":
        return {"head": ("out", "shift"), "lr": 0.02}
    if name == "a-maml":
        return {"lr": 0.02, "steps": 10, "solver": odeopt.Adaptive(1e-6, 1e-8, max_steps=300)}
    if name == "imaml-hf":
        return {"stationarity": None}
    return {"lr": 0.02} | ({"stationarity": None} if name == "imaml-gd" else {})


@pytest.mark.parametrize("name", slow_without(SKIPPING, "a-maml", "a-maml-released"))
def test_a_task_that_diverges_is_left_out(name, few, device):
    params, (train, validation), _ = few.draw(3, 4, device)
    targets = train[1].clone()
    targets[2, 1] = torch.nan
    bad, rest = (train[0], targets), [0, 1, 3]
    make = METHODS.get(name)
    skipping = make(few.loss, few.outer, on_failure="skip", **settings(name))
    raising = make(few.loss, few.outer, **settings(name))
    hparams = raising.init_hparams(params)
    found = skipping(params, (bad, validation), hparams)
    expected = raising(params, few.at((train, validation), rest), hparams)
    assert (found.status != odeopt.Status.OK).tolist() == [False, False, True, False]
    assert few.relative(found.values[rest], expected.values) <= 1e-12
    assert few.relative(found.value, expected.value) <= 1e-12
    assert few.relative(found.grads.params, expected.grads.params) <= 1e-12
    with pytest.raises(odeopt.DivergenceError, match="task"):
        raising(params, (bad, validation), hparams)
