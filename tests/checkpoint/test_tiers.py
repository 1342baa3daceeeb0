"""Where kept states are makes no difference to any number."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odeopt
from odeopt import Binomial, Density, Device, Disk, Every, Graded, Host, TimeGrid
from odeopt.engine.kept import Kept
from odeopt.testing import check_tier
from tests.checkpoint.conftest import Bench, Crash, same

SCHEDULES = st.one_of(
    st.builds(lambda k: lambda store: Every(k, store=store), st.integers(1, 40)),
    st.builds(lambda n: lambda store: Density(n, store=store), st.integers(1, 40)),
    st.builds(lambda n: lambda store: Graded(n, store=store), st.integers(1, 40)),
    st.builds(lambda n: lambda store: Binomial(n, store=store), st.integers(1, 40)),
)
ADJOINTS = {
    "discrete": odeopt.DiscreteAdjoint,
    "continuous": lambda: odeopt.ContinuousAdjoint(odeopt.ModifiedEuler()),
    "truncated": lambda: odeopt.TruncatedAdjoint(7),
}


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@given(SCHEDULES, st.sampled_from(sorted(ADJOINTS)), st.integers(0, 25), st.sampled_from([None, 3]))
def test_the_gradient_is_bitwise_the_same_in_each_tier(tmp_path, make, adjoint, steps, tasks):
    found = [
        Bench(steps, tasks).run(make(store), adjoint=ADJOINTS[adjoint]())
        for store in (Device(), Host(), Disk(tmp_path))
    ]
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    assert files(tmp_path) == []
    costs = [(f.stats.replayed_steps, f.stats.stored_states, f.stats.stored_bytes) for f in found]
    assert costs[0] == costs[1] == costs[2]


@pytest.mark.parametrize("schedule", [Every, Binomial])
def test_an_adaptive_solve_and_observed_states_in_each_tier(tmp_path, schedule):
    def outer(params, batch, hparams, observed):
        return sum(Bench.outer(state, batch, hparams) for state in (*observed, params))

    class Observing(Bench):
        def run(self, store):
            opt = odeopt.ODEOptimizer(
                odeopt.GradientFlow(self.loss),
                odeopt.Adaptive(1e-4, 1e-4),
                checkpoints=schedule(3, store=store),
            )
            params, batch, outer_batch, hparams = self.inputs()
            grid = TimeGrid.uniform(2.0, 4, observe=[1, 3])
            return opt.value_and_grad(outer)(params, batch, grid, outer_batch, hparams)

    found = [Observing().run(store) for store in (Device(), Host(), Disk(tmp_path))]
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    assert files(tmp_path) == []


def test_stats_say_how_much_is_where(tmp_path):
    state = 12 * 8
    for store, own in ((Device(), "device"), (Host(), "host"), (Disk(tmp_path), "disk")):
        stats = Bench(steps=30).run(Binomial(5, store=store)).stats
        assert stats.stored_states == 5
        assert stats.stored_bytes == getattr(stats, f"{own}_bytes") == 5 * state
        others = {"device", "host", "disk"} - {own}
        assert all(getattr(stats, f"{other}_bytes") == 0 for other in others)


def test_states_are_at_hand_if_all_of_them_are(tmp_path):
    assert Kept(odeopt.Stats(), (odeopt.Device(),)).at_hand
    assert not Kept(odeopt.Stats(), (odeopt.Device(), odeopt.Disk(tmp_path))).at_hand


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_is_a_tier_like_others(tmp_path, resume):
    check_tier(odeopt.Disk(tmp_path, resume=resume))


def test_states_on_disk_are_removed_as_they_are_used(tmp_path):
    class Watching(Bench):
        most = 0

        def loss(self, params, batch, hparams):
            self.most = max(self.most, len(list(tmp_path.rglob("state-*"))))
            return super().loss(params, batch, hparams)

    watching = Watching(steps=40)
    watching.run(Binomial(4, store=Disk(tmp_path)))
    assert watching.most == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [5, 35, 60])
def test_states_on_disk_are_removed_when_a_sweep_fails(tmp_path, limit):
    with pytest.raises(Crash):
        Bench(limit=limit).run(Binomial(4, store=Disk(tmp_path)))
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_two_solves_may_share_a_folder(tmp_path):
    one, other = Disk(tmp_path).open(), Disk(tmp_path).open()
    one.put(0, torch.zeros(2))
    other.put(0, torch.ones(2))
    assert one.get(0).tolist() == [0, 0]
    one.close(done=True)
    assert other.get(0).tolist() == [1, 1]


@pytest.mark.parametrize("store", [Host(), Disk("unused")])
def test_solve_keeps_its_states_on_the_device_only(store):
    opt = odeopt.ODEOptimizer(
        odeopt.GradientFlow(lambda params, batch: (params - batch).square().sum()),
        checkpoints=Every(2, store=store),
    )
    params, grid = torch.zeros(3), TimeGrid.from_lr(0.1, 4)
    with pytest.raises(odeopt.CompatibilityError, match="value_and_grad"):
        opt.solve(params.clone().requires_grad_(), torch.ones(3), grid)
    assert opt.solve(params, torch.ones(3), grid).stats.stored_states == 0  # and no file


@pytest.mark.parametrize("store", ["/tmp", Disk, 3])
def test_a_store_that_is_none_is_refused(store):
    for schedule in (Every, Density, Graded, Binomial):
        with pytest.raises(odeopt.InputError, match="Disk"):
            schedule(3, store=store)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tasks", [None, 3])
@pytest.mark.parametrize("schedule", [Every(1), Binomial(6), Density(5)])
def test_states_leave_a_gpu_and_come_back(tmp_path, schedule, tasks):
    class OnGpu(Bench):
        def inputs(self):
            return odeopt.tools.tree.map_tensors(torch.Tensor.cuda, super().inputs())

    kind, *args = type(schedule), *vars(schedule).values()
    number = next(value for value in args if isinstance(value, int))
    found = [
        OnGpu(60, tasks).run(kind(number, store=store))
        for store in (Device(), Host(), Disk(tmp_path))
    ]
    assert same(found[0], found[1])
    assert same(found[0], found[2])


class OfItsOwnKind(odeopt.checkpoint.store.Tier):
    kind = "elsewhere"

    def open(self):
        return Device().open()


@pytest.mark.parametrize("schedule", [Every, Binomial])
def test_a_tier_of_a_new_kind_is_counted_among_all_bytes(schedule):
    found, expected = (
        Bench(9).run(schedule(2, store=store)) for store in (OfItsOwnKind(), Device())
    )
    assert same(found, expected)
    stats, on_device = found.stats, expected.stats
    assert stats.stored_bytes == on_device.stored_bytes == on_device.device_bytes > 0
    assert (stats.device_bytes, stats.host_bytes, stats.disk_bytes) == (0, 0, 0)
