"""Steps pulled through the graphs they were made with: how many are kept, and what they give."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odeopt
from odeopt import Binomial, Density, Every, Graphs, ODEOptimizer, Online, TimeGrid
from odeopt.checkpoint import graphs as module
from odeopt.engine.stats import Stats
from odeopt.engine.tape import Tape
from odeopt.solver.base import RecordedStep
from odeopt.testing import check_schedule, smooth_problem
from odeopt.tools import tree

KIB = 1024
INNER = {
    "euler": lambda loss: (odeopt.GradientFlow(loss, weight_decay=0.1), odeopt.Euler()),
    "rk4": lambda loss: (odeopt.HeavyBall(loss, damping=1.5), odeopt.RK4()),
    "chebyshev": lambda loss: (odeopt.GradientFlow(loss), odeopt.Chebyshev3()),
    "adaptive": lambda loss: (odeopt.GradientFlow(loss), odeopt.Adaptive(1e-3, 1e-4)),
    "stabilised": lambda loss: (odeopt.GradientFlow(loss), odeopt.StabilizedRK(1e-3, 1e-4)),
    "sgd": lambda loss: (odeopt.SGD(loss, momentum=0.9, nesterov=True),),
    "adam": lambda loss: (odeopt.Adam(loss, weight_decay=0.1),),
}
STATES = {
    "chosen": lambda: None,
    "every": lambda: Every(1),
    "every third": lambda: Every(3),
    "two": lambda: Density(2),
    "binomial": lambda: Binomial(3),
    "online": lambda: Online(3),
}


def run(name, checkpoints, steps=11, adjoint=None, **choices):
    problem = smooth_problem()
    opt = ODEOptimizer(*INNER[name](problem.loss), adjoint=adjoint, checkpoints=checkpoints,
                       **choices)  # fmt: skip
    return opt.value_and_grad(problem.loss)(
        problem.params, problem.batch, TimeGrid.from_lr(0.05, steps), problem.outer_batch,
        problem.hparams,
    )  # fmt: skip


def numbers(res):
    return [res.value, *tree.tensors((res.grads.params, res.grads.hparams, res.grads.dt))]


def equal(found, expected):
    return all(map(torch.equal, numbers(found), numbers(expected)))


@pytest.mark.parametrize("name", INNER)
@given(
    states=st.sampled_from(sorted(STATES)), budget=st.sampled_from([0, 1, 3, 8, 20, 10**4]),
    steps=st.integers(1, 13),
)  # fmt: skip
def test_the_gradient_is_the_same_bits_whatever_is_kept(name, states, budget, steps):
    expected = run(name, Every(1), steps)
    found = run(name, Graphs(STATES[states](), budget * KIB), steps)
    assert equal(found, expected)
    assert found.stats.graph_bytes <= budget * KIB
    assert found.stats.hvps == expected.stats.hvps


@pytest.mark.parametrize("name", sorted(set(INNER) - {"adaptive", "stabilised"}))
def test_by_default_each_step_is_pulled_through_its_graph(name):
    expected, found = run(name, Every(1)), run(name, None)
    assert equal(found, expected)
    assert found.stats.recorded_steps == 11
    assert found.stats.graph_bytes > 0
    assert expected.stats.recorded_steps == expected.stats.graph_bytes == 0


def test_replayed_steps_keep_their_graphs():
    found, expected = run("euler", Graphs(Every(4), 10**7)), run("euler", Every(4))
    assert equal(found, expected)
    assert found.stats.recorded_steps == 11
    assert found.stats.replayed_steps == expected.stats.replayed_steps > 0


def test_graphs_take_no_second_evaluation():
    problem, calls = smooth_problem(), []

    def loss(*at):
        calls.append(1)
        return problem.loss(*at)

    args = problem.params, problem.batch, TimeGrid.from_lr(0.05, 9), problem.outer_batch
    counts = []
    for checkpoints in (Graphs(), Every(1)):
        opt = ODEOptimizer(
            odeopt.GradientFlow(loss), checkpoints=checkpoints, safety=odeopt.Safety(probe=False)
        )
        calls.clear()
        opt.value_and_grad(problem.loss)(*args, problem.hparams)
        counts.append(len(calls))
    assert counts == [9, 18]


class OwnPull(odeopt.solver.ExplicitRungeKutta):
    """Euler's method with a pull that counts its calls."""

    def __init__(self):
        super().__init__(odeopt.Euler().tableau)
        self.pulls = 0

    def pull(self, stepping, t, dt, y0, lam):
        self.pulls += 1
        return super().pull(stepping, t, dt, y0, lam)


def test_a_solver_with_a_pull_of_its_own_is_pulled_by_that():
    problem, solver = smooth_problem(), OwnPull()
    opt = ODEOptimizer(odeopt.GradientFlow(problem.loss), solver)
    res = opt.value_and_grad(problem.loss)(
        problem.params, problem.batch, TimeGrid.from_lr(0.05, 5), problem.outer_batch,
        problem.hparams,
    )  # fmt: skip
    assert solver.pulls == 5
    assert res.stats.recorded_steps == 0


@pytest.mark.parametrize("choices", [
    {"compile": "trace"}, {"adjoint": odeopt.DiscreteAdjoint(odeopt.ForwardOverReverse())},
    {"adjoint": odeopt.ContinuousAdjoint(odeopt.RK4())},
])  # fmt: skip
def test_where_there_is_no_graph_to_keep_states_are_kept(choices):
    found, expected = (run("euler", kept, **choices) for kept in (Graphs(), Every(1)))
    assert found.stats.recorded_steps == 0
    torch.testing.assert_close(numbers(found), numbers(expected), rtol=1e-12, atol=1e-14)


def test_the_last_steps_alone():
    adjoint = odeopt.TruncatedAdjoint(4)
    found = run("euler", Graphs(), adjoint=adjoint)
    assert equal(found, run("euler", Every(1), adjoint=adjoint))
    assert found.stats.recorded_steps == 4


@pytest.mark.parametrize(("tasks", "recorded"), [(1, 5), (4, 5), (5, 0)])
def test_many_small_tasks_keep_states(tasks, recorded):
    problem = smooth_problem()
    batch, outer = (tree.map_tensors(lambda x: torch.stack([x + i for i in range(tasks)]), data)
                    for data in (problem.batch, problem.outer_batch))  # fmt: skip
    opt = ODEOptimizer(odeopt.GradientFlow(problem.loss))
    call = opt.value_and_grad(problem.loss, tasks=True)
    res = call(problem.params, batch, TimeGrid.from_lr(0.05, 5), outer, problem.hparams)
    assert res.stats.recorded_steps == recorded
    assert res.stats.stored_states == 5


def test_a_loss_with_a_transform_inside_is_solved_without_graphs():
    problem = smooth_problem()

    def loss(params, batch, hparams):
        slope = torch.func.grad(lambda x: (x**3).sum())(tree.flat(params))
        return problem.loss(params, batch, hparams) + 1e-3 * slope.square().sum()

    results = [
        ODEOptimizer(odeopt.GradientFlow(loss), checkpoints=kept).value_and_grad(loss)(
            problem.params, problem.batch, TimeGrid.from_lr(0.05, 5), problem.outer_batch,
            problem.hparams,
        )
        for kept in (None, Every(1))
    ]  # fmt: skip
    assert equal(*results)
    assert results[0].stats.recorded_steps == 0


def test_graphs_go_when_the_call_ends():
    seen, problem = [], smooth_problem()

    def loss(*at):
        value = problem.loss(*at)
        seen.append(weakref.ref(value))
        return value

    gc.collect()
    gc.disable()
    try:
        res = ODEOptimizer(odeopt.GradientFlow(loss)).value_and_grad(problem.loss)(
            problem.params, problem.batch, TimeGrid.from_lr(0.05, 5), problem.outer_batch,
            problem.hparams,
        )  # fmt: skip
        assert res.stats.recorded_steps == 5
        assert not any(ref() is not None for ref in seen)
    finally:
        gc.enable()


def test_a_solve_keeps_them_for_one_backward_pass():
    problem = smooth_problem()
    params = tree.map_tensors(lambda x: x.clone().requires_grad_(), problem.params)
    opt = ODEOptimizer(odeopt.Adam(problem.loss))
    sol = opt.solve(params, problem.batch, TimeGrid.from_lr(0.05, 7), problem.hparams)
    value = problem.loss(sol.params, problem.outer_batch, problem.hparams)
    leaves = tree.tensors(params)
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    assert sol.stats.recorded_steps == 7
    second = torch.autograd.grad(value, leaves)
    assert sol.stats.recorded_steps == 7
    assert all(map(torch.equal, first, second))


class TestTape:
    """The window of steps that are recorded."""

    def steps(self, capacity, last):
        tape = Tape([torch.zeros(1)], Stats())
        tape.begin(last, lambda size: capacity)
        tape.record(0, lambda: self.made(0))
        return tape

    def made(self, k):
        return RecordedStep(torch.full((), float(k)), lambda lam: k)  # type: ignore[return-value]

    def test_the_last_ones_are_recorded(self):
        tape = self.steps(3, 9)
        assert [k for k in range(1, 12) if tape.wants(k)] == [7, 8, 9]
        assert tape.take(0) is None

    def test_the_window_moves_with_the_pulls(self):
        tape = self.steps(2, 5)
        for k in (4, 5):
            assert tape.record(k, lambda k=k: self.made(k)) == k
            assert not tape.wants(k)
        assert not tape.wants(3)
        assert tape.take(5)(None) == 5
        assert tape.wants(3)
        assert not tape.wants(2)
        assert tape.take(4)(None) == 4
        assert tape.take(4) is None

    def test_with_room_for_all_the_first_is_kept_as_well(self):
        tape = self.steps(10, 9)
        assert not tape.wants(0)
        assert tape.take(0) is not None

    def test_nothing_is_recorded_before_a_length_is_known(self):
        assert not Tape([torch.zeros(1)], Stats()).wants(0)


@given(states=st.sampled_from(sorted(STATES)), budget=st.integers(0, 40))
def test_it_conforms(states, budget):
    check_schedule(Graphs(STATES[states](), 16 * budget), steps=25)


@pytest.mark.parametrize(("budget", "kind", "graphs"), [
    (100 * (8 + 40), Every, 100), (100 * (8 + 40) - 1, Every, 99), (100 * 8 + 80, Every, 2),
    (100 * 8, Every, 0), (100 * 8 - 1, Binomial, 10), (1, Binomial, 0), (0, Binomial, 0),
])  # fmt: skip
def test_what_fits_into_a_budget(budget, kind, graphs):
    fitted = Graphs(budget=budget).fit(8, 100)
    assert type(fitted._own) is kind
    assert fitted.graphs(40, 8, 100) == graphs
    states = min(100, getattr(fitted._own, "slots", 100))
    assert graphs * 40 + states * 8 <= max(budget, 8) or graphs == 100


def test_with_an_unknown_number_of_steps():
    assert type(Graphs(budget=8 * module.UNKNOWN_LENGTH).fit(8, None)._own) is Every
    fitted = Graphs(budget=8 * module.UNKNOWN_LENGTH - 1).fit(8, None)
    assert type(fitted._own) is Online


def test_the_free_memory_is_looked_at_only_for_much(monkeypatch):
    looked = []
    monkeypatch.setattr(module, "free_memory", lambda device: looked.append(device) or 2**30)
    fitted = Graphs().on(torch.device("meta")).fit(2**10, 100)
    assert fitted.graphs(2**10, 2**10, 100) == 100
    assert not looked
    fitted = Graphs().on(torch.device("meta")).fit(2**20, 1000)
    assert type(fitted._own) is Binomial
    assert looked == [torch.device("meta")]
    assert fitted.graphs(2**20, 2**20, 1000) == 256


def test_on_a_cpu_graphs_are_bounded_unless_somebody_says_how_much(monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda device: 2**40)
    counts = [
        schedule.on(torch.device(device)).fit(8, 1000).graphs(2**20, 8, 1000)
        for schedule, device in (
            (Graphs(), "cpu"),
            (Graphs(), "meta"),
            (Graphs(budget=2**40), "cpu"),
        )
    ]
    assert counts == [512, 1000, 1000]
    try:
        odeopt.set_memory_budget(2**40)
        assert Graphs().on(torch.device("cpu")).fit(8, 1000).graphs(2**20, 8, 1000) == 1000
    finally:
        odeopt.set_memory_budget(None)


class RecordsAgain(OwnPull):
    def record(self, stepping, t, dt, y0):
        return super().record(stepping, t, dt, y0)


def test_whoever_writes_record_is_asked_for_it():
    assert not OwnPull.records
    assert RecordsAgain.records
    assert odeopt.RK4.records


def test_a_budget_for_all_solves():
    try:
        odeopt.set_memory_budget("1KiB")
        res = run("euler", None)
        assert res.stats.graph_bytes + res.stats.stored_bytes <= KIB
        assert equal(res, run("euler", Every(1)))
        odeopt.set_memory_budget(None)
        assert run("euler", None).stats.recorded_steps == 11
        with pytest.raises(odeopt.InputError, match="budget is 'much'"):
            odeopt.set_memory_budget("much")
    finally:
        odeopt.set_memory_budget(None)


@pytest.mark.parametrize("states", [Graphs(), 3, Every])
def test_states_are_a_schedule_of_states(states):
    with pytest.raises(odeopt.InputError, match="the schedule of the states beside"):
        Graphs(states)


@pytest.mark.parametrize("name", ["sgd", "rk4", "adaptive"])
@given(st.integers(0, 60 * KIB), st.integers(0, 12))
def test_the_plan_is_what_the_solve_did(name, budget, steps):
    stats = run(name, Graphs(budget=budget), steps).stats
    plan = stats.plan
    assert plan.steps == stats.steps
    assert plan.stored_states == stats.stored_states
    assert plan.stored_bytes == plan.device_bytes == stats.device_bytes
    assert plan.replayed_steps == stats.replayed_steps
    assert plan.graphs <= stats.recorded_steps
    assert plan.stored_states <= plan.slots["device"]
    assert plan.schedule == "every state" or f"({plan.slots['device']})" in plan.schedule


def test_a_plan_says_how_many_graphs_were_kept():
    plan = run("sgd", None).stats.plan
    assert plan.graphs == 11
    assert "graphs kept:    11, of the last steps" in str(plan)
    assert run("sgd", Graphs(Every(1))).stats.plan is None
    assert "graphs" not in str(odeopt.MemoryBudget("1MiB").describe(96, 5))
