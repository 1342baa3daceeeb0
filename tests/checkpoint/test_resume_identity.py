"""A solve that was interrupted is gone on with by the same call only."""

from __future__ import annotations

import threading

import pytest
import torch
from odeopt_plugins.imaml import NewtonCG

import odeopt
from odeopt import SGD, Binomial, CompatibilityError, Disk, Every, InputError
from odeopt.adjoint.discrete import ExactAdjoint
from tests.checkpoint.conftest import Bench, Crash, same


class Scaled(ExactAdjoint):
    """What a plugin may have: an object with a setting of its own."""

    def __init__(self, rate, extra=None):
        super().__init__()
        self.rate, self.extra = rate, extra

    def pull(self, solver, stepping, interval, lam):
        found = super().pull(solver, stepping, interval, lam)
        return found._replace(lam=self.rate * found.lam)


class Optional:
    """With a counter that says nothing, and what it depends on."""

    def __init__(self, rate):
        self.rate, self.calls = rate, 0

    def settings(self):
        return {"rate": self.rate}


def schedule(tmp_path):
    return Binomial(4, store=Disk(tmp_path / "at", resume=True, seconds=0))


def resume(tmp_path, first, second, limit=45):
    with pytest.raises(Crash):
        Bench(25, limit=limit).run(schedule(tmp_path), **first)
    return Bench(25).run(schedule(tmp_path), **second)


@pytest.mark.parametrize(("name", "make"), [
    ("adjoint", Scaled),
    ("adjoint", lambda rate: Scaled(1.0, [{"deep": (Optional(rate),)}])),
    ("adjoint", lambda rate: Scaled(1.0, lambda x, rate=rate: rate)),
    ("adjoint", lambda rate: Scaled(1.0, torch.tensor(rate))),
    ("solver", lambda rate: NewtonCG(round(10 * rate))),
])  # fmt: skip
def test_other_settings_of_an_object_of_others_are_refused(tmp_path, name, make):
    with pytest.raises(InputError, match=f"differs in the {name}"):
        resume(tmp_path, {name: make(0.5)}, {name: make(0.6)})
    found = Bench(25).run(schedule(tmp_path), **{name: make(0.5)})
    assert same(found, Bench(25).run(Every(), **{name: make(0.5)}))


@pytest.mark.parametrize("name", ["hparams", "batch"])
def test_what_the_loss_does_not_look_at_is_compared_too(tmp_path, name):
    """Integers, which are not differentiated, and what makes no difference in the first step."""

    def bench(number, limit=None):
        bench = Bench(25, limit=limit)
        bench.loss = lambda params, batch, hp: Bench.loss(bench, params, batch[:2], hp)
        batch = (*bench.inputs()[1], torch.tensor(number if name == "batch" else 0))
        hparams = {"round": torch.tensor(number if name == "hparams" else 0)}
        bench.tweak.update(batch=batch, hparams=hparams)
        return bench

    with pytest.raises(Crash):
        bench(1, limit=45).run(schedule(tmp_path))
    with pytest.raises(InputError, match=rf"differs in the {name}\."):
        bench(2).run(schedule(tmp_path))
    assert same(bench(1).run(schedule(tmp_path)), bench(1).run(Every()))


def test_the_seed_of_a_stream_is_compared(tmp_path):
    """Though the loss of the first step draws no random number."""

    def run(seed, limit=None):
        bench = Bench(25, limit=limit)
        bench.tweak["batch"] = odeopt.Stream.constant(bench.inputs()[1], seed)
        bench.tweak["field"] = SGD
        return bench.run(schedule(tmp_path))

    with pytest.raises(Crash):
        run(1, limit=45)
    with pytest.raises(InputError, match=r"differs in the batch\."):
        run(2)
    run(1)


def test_what_a_loss_has_captured_may_change(tmp_path):
    def run(limit):
        calls = 0

        def loss(params, batch):
            nonlocal calls
            calls += 1
            if calls > limit:
                raise Crash
            return (params.square() * batch).sum()

        opt = odeopt.ODEOptimizer(SGD(loss), checkpoints=schedule(tmp_path))
        call = opt.value_and_grad(lambda params, batch: (params * batch).sum())
        ones = torch.ones(3)
        return call(ones, ones, odeopt.TimeGrid.from_lr(0.1, 25), ones)

    with pytest.raises(Crash):
        run(45)
    torch.testing.assert_close(run(1000).grads.params, torch.full((3,), 0.8**25))


def test_a_loss_whose_code_has_changed_is_refused(tmp_path):
    def run(code, limit):
        bench = Bench(25, limit=limit)
        bench.loss = eval(code, {"loss": bench.loss})
        return bench.run(schedule(tmp_path))

    with pytest.raises(Crash):
        run("lambda p, batch, hp: loss(p, batch, hp)", 45)
    with pytest.raises(InputError, match=r"differs in the field\."):  # its first step is the same
        run("lambda p, batch, hp: 1.0 * loss(p, batch, hp)", None)


def test_what_cannot_be_compared_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(CompatibilityError, match=r"the adjoint\.extra\['lock'\], a _thread\.lock"):
        Bench(25).run(schedule(tmp_path), adjoint=Scaled(1.0, {"lock": threading.Lock()}))
    assert not (tmp_path / "at").exists()


@pytest.mark.parametrize(("where", "what"), [
    ("odeopt.tools.version.__version__", "9.9"), ("torch.__version__", "9.9"),
])  # fmt: skip
def test_another_version_is_refused(tmp_path, monkeypatch, where, what):
    with pytest.raises(Crash):
        Bench(25, limit=45).run(schedule(tmp_path))
    monkeypatch.setattr(where, what)
    with pytest.raises(InputError, match="differs in the version or device"):
        Bench(25).run(schedule(tmp_path))


def test_other_kernels_are_refused(tmp_path):
    def run(compile, limit):
        bench = Bench(25, limit=limit)
        opt = odeopt.ODEOptimizer(
            odeopt.GradientFlow(bench.loss), checkpoints=schedule(tmp_path), compile=compile
        )
        params, batch, outer_batch, hparams = bench.inputs()
        grid = odeopt.TimeGrid.from_lr(0.1, 25)
        return opt.value_and_grad(bench.outer)(params, batch, grid, outer_batch, hparams)

    with pytest.raises(Crash):
        run(None, 45)
    with pytest.raises(InputError, match="differs in the compilation"):
        run("trace", None)


def test_the_same_optimiser_goes_on_after_it_has_compiled(tmp_path):
    """Kernels that were compiled meanwhile are no other setting."""
    bench = Bench(25)
    opt = odeopt.ODEOptimizer(
        odeopt.GradientFlow(bench.loss), checkpoints=schedule(tmp_path), compile="trace"
    )
    params, batch, outer_batch, hparams = bench.inputs()
    grid = odeopt.TimeGrid.from_lr(0.1, 25)

    def failing(params, batch, hparams):
        raise Crash

    with pytest.raises(Crash):
        opt.value_and_grad(failing)(params, batch, grid, outer_batch, hparams)
    assert (tmp_path / "at" / "forward.progress").exists()
    found = opt.value_and_grad(bench.outer)(params, batch, grid, outer_batch, hparams)
    assert found.stats.replayed_steps > 0
    assert not (tmp_path / "at").exists()
