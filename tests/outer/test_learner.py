"""The outer loop: stopping, resuming, failures and what it writes down."""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.params import slow_without

import odeopt
from odeopt.testing import smooth_problem


def pool(device, tasks=12, batch_size=4, **keywords):
    problem = smooth_problem(device, tasks)
    return odeopt.TaskPool(problem.batch, problem.outer_batch, batch_size, **keywords)


def learner(device, method="maml", **keywords):
    problem = smooth_problem(device)
    model = odeopt.ModuleLoss(problem.params, None, problem.loss)
    settings = keywords.pop("settings", {"lr": 0.1, "steps": 3})
    return odeopt.MetaLearner(method, model, pool(device), settings=settings, **keywords)


def same(first, second):
    pairs = zip(first.params.values(), second.params.values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_each_update_is_shown(device, monkeypatch):
    shown = []

    @contextmanager
    def noted(total, done, wanted):
        assert (total, done, wanted) == (3, 0, True)
        yield shown.append

    monkeypatch.setattr("odeopt.outer.outer_loop.progress", noted)
    assert learner(device).fit(3) == shown


def test_it_learns_what_plain_adam_learns(device):
    found = learner(device, optimizer=lambda leaves: torch.optim.Adam(leaves, lr=0.01))
    steps = found.fit(6)
    problem, tasks = smooth_problem(device), pool(device)
    method = odeopt.METHODS.get("maml")(problem.loss, lr=0.1, steps=3)
    params = {name: leaf.clone() for name, leaf in problem.params.items()}
    adam = torch.optim.Adam(list(params.values()), lr=0.01)
    for k in range(6):
        res = method(params, tasks(k))
        for name, leaf in params.items():
            leaf.grad = res.grads.params[name]
        adam.step()
        assert steps[k].value == pytest.approx(float(res.value), rel=1e-12)
    assert all(torch.equal(found.params[name], params[name]) for name in params)
    assert [step.update for step in steps] == list(range(6))


@pytest.mark.filterwarnings("ignore:the inner problem has not converged")
@pytest.mark.parametrize(
    "name", slow_without(odeopt.METHODS.names(), "a-maml", "a-maml-released", "comln")
)
def test_every_method_learns(device, name):
    problem = smooth_problem(device)
    method = odeopt.METHODS.example(name)(problem.loss)
    tasks = pool(device)
    found = odeopt.MetaLearner(
        method, problem.params, tasks, lambda leaves: torch.optim.Adam(leaves, lr=0.05),
    )  # fmt: skip
    everything = tasks.select(range(12))
    before = found.evaluate(everything).mean()
    found.fit(6)
    assert found.evaluate(everything).mean() < 0.95 * before


@settings(max_examples=3)
@given(stop=st.integers(1, 9), every=st.integers(1, 4), seed=st.integers(0, 3))
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path_factory, stop, every, seed):
    def make(folder, callback=None):
        torch.manual_seed(seed)
        return learner(
            None, "meta-sgd", folder=folder, checkpoint_every=every, callback=callback,
            settings={"lr": 0.1, "steps": 2},
        )  # fmt: skip

    def interrupt(step):
        if step.update == stop:
            raise KeyboardInterrupt

    whole = make(tmp_path_factory.mktemp("whole"))
    whole.fit(10)
    folder = tmp_path_factory.mktemp("parts")
    with pytest.raises(KeyboardInterrupt):
        make(folder, interrupt).fit(10)
    parts = make(folder)
    assert parts.restore() == (stop + 1 >= every)
    assert parts.updates == (stop + 1) // every * every
    parts.fit(10)
    assert same(whole, parts)
    assert torch.equal(whole.hparams["lr"]["out"], parts.hparams["lr"]["out"])
    values = [[step.value for step in run.history()] for run in (whole, parts)]
    assert values[0] == values[1]
    assert len(values[0]) == 10


def test_nothing_to_restore(tmp_path):
    assert not learner(None).restore()
    assert not learner(None, folder=tmp_path).restore()


def test_another_run_is_not_overwritten(tmp_path):
    learner(None, folder=tmp_path).fit(1)
    with pytest.raises(odeopt.InputError, match=r"call restore\(\) to go on"):
        learner(None, folder=tmp_path).fit(1)


def test_it_stops_when_the_initialisation_hardly_moves():
    found = learner(None, optimizer=lambda leaves: torch.optim.SGD(leaves, lr=1e-9))
    steps = found.fit(10, tolerance=1e-6)
    assert len(steps) == 1
    assert steps[0].change < 1e-6
    assert len(learner(None).fit(3, tolerance=1e-6)) == 3


def test_gradients_are_clipped():
    found = learner(None, clip=1e-3, optimizer=lambda leaves: torch.optim.SGD(leaves, lr=1.0))
    step = found.fit(1)[0]
    assert step.grad_norm > 1e-3
    assert step.change == pytest.approx(1e-3, rel=1e-9)


def test_gradients_that_are_short_enough_are_not_stretched():
    found = learner(None, clip=1e3, optimizer=lambda leaves: torch.optim.SGD(leaves, lr=1.0))
    step = found.fit(1)[0]
    assert step.grad_norm < 1e3
    assert step.change == pytest.approx(step.grad_norm, rel=1e-9)


def test_validation_and_callback():
    seen = []
    held_out = pool(None).select([0, 1])
    found = learner(None, validation=held_out, validate_every=2, callback=seen.append)
    found.fit(5)
    assert [step.validation is not None for step in seen] == [False, True, False, True, True]
    assert seen[-1].validation == pytest.approx(float(found.evaluate(held_out).mean()), rel=1e-12)


def test_metrics_are_lines_of_json(tmp_path):
    learner(None, folder=tmp_path).fit(3)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    assert [json.loads(line)["update"] for line in whole.splitlines()] == [0, 1, 2]
    for line in ('{"update": 3, "val', "{", whole.splitlines()[1] + "\x00", "\x00\x00"):
        path.write_text(whole + line)  # an interruption while a line is written
        again = learner(None, folder=tmp_path)
        assert [step.update for step in again.history()] == [0, 1, 2]
        assert again.restore()
        assert path.read_text() == whole
    again.fit(5)
    assert [json.loads(line)["update"] for line in path.read_text().splitlines()] == list(range(5))


def diverging(on_failure):
    def loss(params, batch):
        return (batch * params.square()).sum()

    names = ("calm", "wild", "mild")
    data = torch.tensor([[0.1], [1e200], [0.2]])
    tasks = odeopt.TaskPool(data, data, batch_size=3, names=names)
    method = odeopt.METHODS.get("maml")(loss, lr=0.5, steps=5, on_failure=on_failure)
    return odeopt.MetaLearner(method, torch.ones(2), tasks)


def test_a_diverging_task_is_named():
    with pytest.raises(odeopt.DivergenceError) as caught:
        diverging("raise").fit(1)
    assert "wild" in caught.value.__notes__[0]
    with pytest.warns(odeopt.OdeoptWarning, match=r"left out: wild \(STATE_NOT_FINITE\)"):
        step = diverging("skip").fit(1)[0]
    assert step.failed == ("wild (STATE_NOT_FINITE)",)
    assert step.value < 10


def test_an_infinite_meta_gradient_is_refused():
    class Broken(odeopt.Method):
        def __call__(self, params, task_batch, hparams=None):
            grads = odeopt.MetaGrads(params / 0, None)
            zero = torch.zeros(1)
            return odeopt.MetaGradient(zero[0], grads, odeopt.Stats(), zero, zero.long())

        adapt = evaluate = None

    Broken.__abstractmethods__ = frozenset()
    found = odeopt.MetaLearner(Broken(), torch.ones(2), pool(None))
    with pytest.raises(odeopt.DivergenceError, match="update 0 is not finite"):
        found.fit(1)


def test_learned_hparams_of_the_loss():
    problem = smooth_problem()
    model = odeopt.ModuleLoss(problem.params, problem.hparams, problem.loss)
    found = odeopt.MetaLearner("maml", model, pool(None), settings={"lr": 0.1})
    found.fit(2)
    assert not torch.equal(found.hparams["penalty"], problem.hparams["penalty"])


def test_a_module_is_learned_without_being_changed():
    network = torch.nn.Linear(3, 1)
    before = {name: leaf.detach().clone() for name, leaf in network.named_parameters()}
    x, y = torch.randn(6, 5, 3), torch.randn(6, 5, 1)
    pool = odeopt.TaskPool((x, y), (x, y), 3)

    def objective(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    found = odeopt.MetaLearner("maml", network, pool, loss=objective)
    found.fit(3)
    assert set(found.params) == {"weight", "bias"}
    for name, leaf in network.named_parameters():
        assert torch.equal(leaf, before[name])
        assert not torch.equal(found.params[name], before[name])


def test_bad_arguments_are_refused():
    problem, tasks = smooth_problem(), pool(None)
    model = odeopt.ModuleLoss(problem.params, None, problem.loss)
    cases = [
        (lambda: odeopt.MetaLearner("maml", problem.params, tasks), "there is no loss"),
        (lambda: odeopt.MetaLearner("maml", torch.nn.Linear(1, 1), tasks), "model is a module"),
        (lambda: odeopt.MetaLearner("maml", model, tasks, loss=problem.loss), "leave loss out"),
        (lambda: odeopt.MetaLearner(3, model, tasks), "expected a Method or a name"),
        (lambda: odeopt.MetaLearner("maml", model, [1]), r"expected tasks\(k\)"),
        (lambda: odeopt.MetaLearner("maml", model, tasks, clip=-1.0), "clip is -1.0"),
        (lambda: odeopt.MetaLearner("maml", model, tasks, validate_every=0), "validate_every"),
        (lambda: pool(None, batch_size=13), "from 1 to 12"),
        (lambda: pool(None, names=("one",)), "1 names for 12 tasks"),
    ]
    for make, message in cases:
        with pytest.raises(odeopt.InputError, match=message):
            make()
    with pytest.raises(odeopt.UnknownNameError, match="unknown method 'mamml'"):
        odeopt.MetaLearner("mamml", model, tasks)
    method = odeopt.METHODS.get("maml")(problem.loss)
    with pytest.raises(odeopt.InputError, match="for a method given by name"):
        odeopt.MetaLearner(method, model, tasks, settings={"lr": 1.0})


def test_tensorboard_is_optional(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **keywords):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *args, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(odeopt.CompatibilityError, match="install it, or read metrics"):
        odeopt.tensorboard("runs")


def test_steps_that_do_not_move_do_not_end_a_run_without_a_tolerance(device):
    found = odeopt.MetaLearner(
        "maml", smooth_problem(device).params, pool(device), partial(torch.optim.SGD, lr=0.0),
        loss=smooth_problem(device).loss, settings={"lr": 0.1, "steps": 1},
    )  # fmt: skip
    assert [step.change for step in found.fit(3)] == [0.0, 0.0, 0.0]
    assert len(found.fit(9, tolerance=1e-9)) == 1


def test_a_callback_of_fit_is_called_after_that_of_the_learner(device):
    seen = []
    own = learner(device, callback=lambda step: seen.append(("learner", step)))
    steps = own.fit(2, callback=lambda step: seen.append(("fit", step)))
    assert seen == [(who, step) for step in steps for who in ("learner", "fit")]
    (last,) = own.fit(3)
    assert seen[4:] == [("learner", last)]


def test_a_callback_or_a_folder_of_another_kind_is_refused(device, tmp_path):
    with pytest.raises(odeopt.InputError, match="callback is 3; expected a function of a Step"):
        learner(device).fit(1, callback=3)
    with pytest.raises(odeopt.InputError, match="callback is 3; expected a function of a Step"):
        learner(device, callback=3)
    with pytest.raises(odeopt.InputError, match="folder is 3; expected the path of a folder"):
        learner(device, folder=3)
    (tmp_path / "file").write_text("")
    with pytest.raises(odeopt.StorageError, match="file cannot be written to"):
        learner(device, folder=tmp_path / "file").fit(1)


def test_an_optimizer_that_is_made_already_is_told_what_to_write(device):
    made = torch.optim.Adam([torch.ones(2)])
    with pytest.raises(odeopt.InputError, match=r"write optimizer=lambda leaves: Adam\(leaves, "):
        learner(device, optimizer=made)
    with pytest.raises(odeopt.InputError, match=r"write schedule=lambda optimizer: StepLR\(opt"):
        learner(device, schedule=torch.optim.lr_scheduler.StepLR(made, 1))
    with pytest.raises(odeopt.InputError) as caught:
        learner(device, optimizer=lambda leaves: None)
    assert "already" not in str(caught.value)
