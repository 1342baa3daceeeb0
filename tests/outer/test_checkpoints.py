"""Checkpoints of a learner: whose they are, whether they are whole, and who may write them."""

from __future__ import annotations

import copy
import shutil
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odeopt
from odeopt import InputError, StorageError
from odeopt.outer.run_folder import Checkpoint
from odeopt.testing import smooth_problem
from tests.outer.conftest import make, same


def contents(learner):
    """What a failed restart must leave as it is."""
    state = copy.deepcopy(learner._loop._optimizer.state_dict())
    metrics = learner._loop._folder.checkpoint.with_name("metrics.jsonl")
    written = metrics.read_bytes() if metrics.exists() else b""
    tensors = copy.deepcopy((learner.params, learner.hparams)), torch.get_rng_state()
    return (tensors, state), (learner.updates, written, str(state))


def refuses(learner, error, message):
    """Restarting raises, and changes nothing."""
    torch.manual_seed(5)
    before, plain = contents(learner)
    with pytest.raises(error, match=message):
        learner.restore()
    after, plain_after = contents(learner)
    assert same(before, after)
    assert plain == plain_after


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run, to be copied."""
    torch.set_default_dtype(torch.float64)
    folder = tmp_path_factory.mktemp("run")
    make(folder).fit(4)
    return folder


@pytest.fixture
def folder(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"update": 4, "va')  # what a restart removes
    return tmp_path / "run"


@given(st.data())
def test_one_flipped_bit_is_noticed(run, tmp_path, data):
    content = bytearray((run / "checkpoint.pt").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "checkpoint.pt").write_bytes(content)
    refuses(make(tmp_path), StorageError, r"checkpoint\.pt is not what was written")


def test_other_formats_say_so(folder):
    path = folder / "checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"odeopt 2 ", b"odeopt 3 ", 1))
    refuses(
        make(folder), StorageError, "it has the format '3', and this version of odeopt reads '2'"
    )
    path.write_bytes(content.replace(b" checkpoint ", b" state ", 1))
    refuses(make(folder), StorageError, "it holds a 'state', not a 'checkpoint'")
    torch.save({"updates": 4}, path)
    refuses(make(folder), StorageError, "does not begin as files of this version")
    path.unlink()
    path.mkdir()
    refuses(make(folder), StorageError, "cannot be read")


def other_loss(params, batch):
    return 2 * smooth_problem().loss(params, batch)


def two_groups(leaves):
    return torch.optim.Adam([{"params": leaves[:1]}, {"params": leaves[1:], "lr": 0.02}], lr=0.01)


OTHERS = {
    "method": ({"method": "maml"}, r"(the method|hparams)"),
    "inner lr": ({"settings": {"lr": 0.2}}, "the method"),
    "steps": ({"settings": {"steps": 3}}, "the method"),
    "loss": ({"loss": other_loss}, "the method"),
    "pool seed": ({"pool": {"seed": 1}}, "the tasks"),
    "batch size": ({"pool": {"batch_size": 3}}, "the tasks"),
    "data": ({"pool": {"sign": -1}}, "the tasks"),
    "function of tasks": ({"tasks": lambda k: None}, "the tasks"),
    "optimizer": ({"optimizer": lambda leaves: torch.optim.AdamW(leaves, lr=0.01)},
                  "the outer optimizer"),
    "without a memory": ({"optimizer": lambda leaves: torch.optim.SGD(leaves, lr=0.01)},
                         "the outer optimizer"),
    "outer lr": ({"optimizer": torch.optim.Adam}, "the outer optimizer's lr"),
    "groups": ({"optimizer": two_groups}, "the groups of the outer optimizer"),
    "clip": ({"clip": 1.0}, "clip"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused_by_what_differs(folder, name):
    changes, part = OTHERS[name]
    refuses(make(folder, **changes), InputError, part)


def test_versions_are_named_where_something_differs(folder, monkeypatch):
    monkeypatch.setattr("odeopt.tools.version.__version__", "9.9")
    refuses(make(folder, clip=1.0), InputError, r"by odeopt 0.*; this is odeopt 9\.9.*in clip\.")
    assert make(folder).restore()


def test_other_shapes_are_refused(folder):
    model = smooth_problem().params
    wide = {**model, "out": torch.zeros(7)}
    loss = lambda params, batch: sum(leaf.square().sum() for leaf in params.values())  # noqa: E731
    pool = odeopt.TaskPool(torch.ones(4, 1), torch.ones(4, 1), 2)

    def learner(params, **keywords):
        return odeopt.MetaLearner("maml", params, pool, loss=loss, **keywords)

    own = folder / "own"
    learner(model, folder=own).fit(1)
    refuses(
        learner(wide, folder=own), InputError,
        r"params\['out'\] is torch\.float64 \[\d\], expected torch\.float64 \[7\]",
    )  # fmt: skip
    single = odeopt.tools.tree.map_tensors(torch.Tensor.float, model)
    refuses(learner(single, folder=own), InputError, "expected torch.float32")
    fewer = {name: leaf for name, leaf in model.items() if name != "out"}
    refuses(learner(fewer, folder=own), InputError, r"params\['out'\] is .*, expected nothing")


def test_other_hparams_leave_everything_as_it_is(folder):
    """Parameters that fit are not taken over when hparams do not."""
    learner = make(folder, hparams={"lr": {"out": torch.zeros(9)}})
    refuses(learner, InputError, r"hparams\['lr'\]")


class Second:
    """A worker to which the first one hands on what it has read."""

    rank = 1

    def __init__(self, *handed_on):
        self.handed_on = iter(handed_on)

    def from_first(self, what, read):
        return next(self.handed_on)

    def together(self, what, work):
        return work()


def test_another_worker_than_the_first_looks_whether_it_fits_as_well(folder):
    learner = make(folder, hparams={"lr": {"out": torch.zeros(9)}})
    found = Checkpoint.read(folder / "checkpoint.pt")
    learner._loop._workers, learner._loop._writer = Second(True, found), None
    refuses(learner, InputError, r"hparams\['lr'\]")


def test_tensors_go_by_their_names(folder, device):
    whole, again = make(None), make(folder, order=-1)
    whole.fit(4)
    assert list(again.params) == list(whole.params)[::-1]
    assert again.restore()
    for name, leaf in whole.params.items():
        assert torch.equal(again.params[name], leaf)
        assert torch.equal(again.hparams["lr"][name], whole.hparams["lr"][name])
        one, other = (x._loop._optimizer.state[x.params[name]]["exp_avg"] for x in (whole, again))
        assert torch.equal(one, other)


def test_a_learner_goes_on_in_groups_of_the_optimizer(tmp_path, device):
    def learner(folder):
        return make(folder, device, optimizer=two_groups)

    whole = learner(tmp_path / "whole")
    whole.fit(5)
    learner(tmp_path / "parts").fit(2)
    parts = learner(tmp_path / "parts")
    assert parts.restore()
    parts.fit(5)
    assert same((whole.params, whole.hparams), (parts.params, parts.hparams))


def test_tasks_that_are_drawn_at_random_go_on(tmp_path):
    """Torch's random numbers are restored, so that a run of two parts draws what one draws."""
    problem = smooth_problem(None, 12)
    pool = odeopt.TaskPool(problem.batch, problem.outer_batch, 4)

    def drawn(k):
        return pool.select(torch.randperm(12)[:4].tolist())

    def learner(name, seed):
        torch.manual_seed(seed)
        return make(tmp_path / name, tasks=drawn)

    whole = learner("whole", seed=3)
    whole.fit(6)
    learner("parts", seed=3).fit(4)
    parts = learner("parts", seed=8)
    assert parts.restore()
    parts.fit(6)
    assert same((whole.params, whole.hparams), (parts.params, parts.hparams))


class Own(odeopt.Method):
    """A method with a lock, a counter, and a setting."""

    def __init__(self, rate):
        self.rate, self.calls, self.lock = rate, 0, threading.Lock()

    def settings(self):
        return {"rate": self.rate, "lock": self.lock}

    def __call__(self, params, task_batch, hparams=None):
        self.calls += 1
        value = torch.zeros(1)
        return odeopt.MetaGradient(
            value[0], odeopt.MetaGrads(self.rate * params, None), odeopt.Stats(), value,
            value.long(),
        )  # fmt: skip

    def adapt(self, params, train, hparams=None):
        return params

    def evaluate(self, params, task_batch, hparams=None):
        return torch.zeros(1)


def test_an_object_says_itself_what_it_depends_on(tmp_path):
    def learner(method):
        pool = odeopt.TaskPool(torch.ones(4, 1), torch.ones(4, 1), 2)
        return odeopt.MetaLearner(method, torch.ones(2), pool, folder=tmp_path)

    method = Own(0.5)
    learner(method).fit(2)
    assert method.calls == 2
    assert learner(method).restore()
    assert learner(Own(0.5)).restore()
    refuses(learner(Own(0.6)), InputError, "the method")


def test_where_a_module_began_does_not_count(tmp_path):
    """Its parameters are those of the checkpoint; its other settings are not."""

    def learner(dropout=0.0):
        network = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Dropout(dropout))
        network.eval()
        return odeopt.MetaLearner("maml", network, pool, loss=objective, folder=tmp_path)

    def objective(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    x, y = torch.randn(6, 5, 3), torch.randn(6, 5, 1)
    pool = odeopt.TaskPool((x, y), (x, y), 3)
    first = learner()
    first.fit(2)
    again = learner()
    assert not same(again.params, first.params)
    assert again.restore()
    assert same(again.params, first.params)
    refuses(learner(dropout=0.5), InputError, "the method")


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_of_parameters_that_differ_the_first_are_named(count):
    held = {f"params['p{k}']": "torch.float64 [2]" for k in range(count)}
    found = Checkpoint("", {}, held, 0, {}, {}, torch.zeros(0))
    with pytest.raises(odeopt.InputError) as caught:
        found.check_layout({}, Path("checkpoint.pt"))
    message = str(caught.value)
    assert message.count("is torch.float64 [2], expected nothing") == min(count, 3)
    assert (f" and {count - 3} more" in message) == (count > 3)
    assert (" more" in message) == (count > 3)
