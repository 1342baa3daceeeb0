"""The outer loop over hparams: what it learns, exact resume, data that change."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odeopt

SGD = lambda leaves: torch.optim.SGD(leaves, lr=0.3)  # noqa: E731


def loss(params, batch, hparams):
    x, y = batch
    return (x @ params - y).square().mean() + hparams["ridge"].exp() * params.square().sum()


def outer(params, batch, hparams):
    return (batch[0] @ params - batch[1]).square().mean()


def grid(hparams):
    return odeopt.TimeGrid.from_lr(hparams["lr"].exp(), 5)


@pytest.fixture
def case(device):
    generator = torch.Generator().manual_seed(1)
    drawn = [
        torch.randn(shape, generator=generator).to(device)
        for shape in ((20, 4), (20,), (9, 4), (9,))
    ]
    hparams = {"ridge": torch.tensor(-2.0, device=device), "lr": torch.tensor(-3.0, device=device)}
    problem = odeopt.BilevelProblem(odeopt.SGD(loss, momentum=0.5), outer, grid)
    return problem, hparams, torch.zeros(4, device=device), tuple(drawn[:2]), tuple(drawn[2:])


def test_it_is_the_plain_loop(case):
    problem, hparams, params, train, held_out = case
    own = {name: leaf.clone() for name, leaf in hparams.items()}
    optimizer = SGD(list(own.values()))
    values = []
    for _ in range(4):
        res = problem.value_and_grad(own, params, train, held_out)
        for name, leaf in own.items():
            leaf.grad = res.grads.hparams[name]
        optimizer.step()
        values.append(res.value.item())
    found = problem.minimize(hparams, params, train, held_out, 4, optimizer=SGD)
    assert [step.value for step in found.steps] == values
    assert values[-1] < values[0]
    assert all(torch.equal(found.hparams[name], own[name]) for name in own)
    assert hparams["ridge"] == -2


def test_data_may_depend_on_the_update_and_validation_is_apart(case):
    problem, hparams, params, train, held_out = case
    seen = []

    def batch(k):
        seen.append(k)
        return odeopt.Stream.minibatches(train, 8, seed=k)

    outer_batch = odeopt.Stream.minibatches(held_out, 4, seed=0)
    found = problem.minimize(
        hparams, params, batch, outer_batch, 4, optimizer=SGD, validation=held_out,
        validate_every=2,
    )  # fmt: skip
    assert seen == [0, 0, 1, 2, 3]  # the first is for the validation
    res = problem.value_and_grad(hparams, params, batch(0), outer_batch(0))
    assert found.steps[0].value == res.value.item()
    assert [step.validation is None for step in found.steps] == [True, False, True, False]
    last = problem.value(found.hparams, params, batch(0), held_out)
    assert found.steps[-1].validation == pytest.approx(last.item(), rel=1e-12)


@given(stop=st.integers(0, 5), every=st.integers(1, 3))
def test_the_same_call_goes_on_after_an_interruption(case, tmp_path_factory, stop, every):
    problem, hparams, params, train, held_out = case
    batch = lambda k: odeopt.Stream.minibatches(train, 8, seed=k)  # noqa: E731

    def run(folder, callback=None):
        return problem.minimize(
            hparams, params, batch, held_out, 6, folder=folder, checkpoint_every=every,
            callback=callback,
        )  # fmt: skip

    def interrupt(step):
        if step.update == stop:
            raise KeyboardInterrupt

    whole = run(tmp_path_factory.mktemp("whole"))
    folder = tmp_path_factory.mktemp("parts")
    with pytest.raises(KeyboardInterrupt):
        run(folder, interrupt)
    resumed = run(folder)
    assert all(torch.equal(resumed.hparams[name], whole.hparams[name]) for name in hparams)
    assert [s.value for s in resumed.steps] == [s.value for s in whole.steps]


def stream(data, seed=0, size=8, **keywords):
    return odeopt.Stream.minibatches(data, size, seed, **keywords)


@pytest.mark.parametrize(("other", "part"), [
    (lambda p, h, u, train, held_out: (p, h, u + 1, stream(train), held_out), "the initial params"),
    (lambda p, h, u, train, held_out: (p, h, u, stream(train, seed=1), held_out), "the data"),
    (lambda p, h, u, train, held_out: (p, h, u, stream(train, size=4), held_out), "the data"),
    (lambda p, h, u, train, held_out: (p, h, u, stream(train, shuffle=False), held_out),
     "the data"),
    (lambda p, h, u, train, held_out: (p, h, u, stream((-train[0], train[1])), held_out),
     "the data"),
    (lambda p, h, u, train, held_out: (p, h, u, stream(train), (held_out[0], -held_out[1])),
     "the data"),
    (lambda p, h, u, train, held_out: (
        odeopt.BilevelProblem(odeopt.SGD(loss, momentum=0.6), outer, grid), h, u, stream(train),
        held_out), "the problem"),
    (lambda p, h, u, train, held_out: (
        p, {**h, "lr": h["lr"].expand(5)}, u, stream(train), held_out), r"hparams\['lr'\] is"),
])  # fmt: skip
def test_another_call_does_not_go_on_in_the_folder(case, tmp_path, other, part):
    problem, hparams, params, train, held_out = case

    def run(problem, hparams, params, batch, outer_batch, updates=2):
        return problem.minimize(hparams, params, batch, outer_batch, updates, folder=tmp_path)

    run(problem, hparams, params, stream(train), held_out)
    with pytest.raises(odeopt.InputError, match=part):
        run(*other(problem, hparams, params, train, held_out))
    found = run(problem, hparams, params, stream(train), held_out, 3)
    assert len(found.steps) == 3


def test_an_error_names_the_update(case):
    problem, hparams, params, train, held_out = case
    hparams["lr"] = torch.tensor(300.0, device=params.device)
    with pytest.raises(odeopt.DivergenceError) as caught:
        problem.minimize(hparams, params, train, held_out, 2)
    assert "update 0" in caught.value.__notes__[0]


def test_statistics_of_a_rule_reach_the_outer_loss(case, device):
    _, hparams, params, train, held_out = case
    count = torch.zeros(1, device=device)

    def counting(params, batch, hparams, buffers):
        return loss(params, batch, hparams), buffers + 1

    def scaled(params, batch, hparams, buffers):
        return outer(params, batch, hparams) * buffers.sum()

    problem = odeopt.BilevelProblem(odeopt.SGD(counting, buffers=count), scaled, grid)
    res = problem.value_and_grad(hparams, params, train, held_out)
    assert problem.value(hparams, params, train, held_out) == pytest.approx(res.value.item())
