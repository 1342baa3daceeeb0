"""Copies of built-ins under other names do all that the built-ins do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from other_names import Drawer, OtherAdam, OtherContinuous, OtherRKC
from support.params import slow_but

import odeopt
from odeopt import GradientFlow, ODEOptimizer, TimeGrid, tree
from odeopt.testing import check_adjoint, check_rule, check_solver, check_tier, smooth_problem
from tests.checkpoint.conftest import Bench, Crash

PACKAGE = Path(__file__).parents[1] / "plugin_package"
TASKS = [None, 3]
CHECKPOINTS = [
    odeopt.Every(1),
    odeopt.Binomial(3),
    pytest.param(odeopt.Online(4), marks=pytest.mark.slow),
]


def pair(kind, checkpoints=None, **choices):
    """An optimiser of built-ins and its copy."""

    def stabilized(loss):
        return [
            ODEOptimizer(GradientFlow(loss), solver, checkpoints=checkpoints, **choices)
            for solver in (odeopt.StabilizedRK(1e-3, 1e-5), OtherRKC(1e-3, 1e-5))
        ]

    def adam(loss):
        rules = (odeopt.Adam(loss), OtherAdam(loss))
        return [ODEOptimizer(rule, checkpoints=checkpoints, **choices) for rule in rules]

    def continuous(loss):
        adjoints = (odeopt.ContinuousAdjoint(odeopt.Euler()), OtherContinuous())
        return [
            ODEOptimizer(GradientFlow(loss), odeopt.RK4(), adjoint, checkpoints, **choices)
            for adjoint in adjoints
        ]

    return {"stabilized": stabilized, "adam": adam, "continuous": continuous}[kind]


def stiffer(loss):
    return lambda params, batch, hparams=None: 20 * loss(params, batch, hparams)


def call(opt, problem, tasks, grid, **more):
    run = opt.value_and_grad(problem.loss, tasks=tasks is not None, **more)
    return run(problem.params, problem.batch, grid, problem.outer_batch, problem.hparams)


GRIDS = {
    "stabilized": TimeGrid.uniform(3.0, 2),
    "adam": TimeGrid.from_lr(0.05, 7),
    "continuous": TimeGrid.uniform(0.4, 40),
}


def same(one, other):
    torch.testing.assert_close(one.value, other.value, rtol=1e-13, atol=0)
    assert one.stats == other.stats
    leaves = (tree.tensors((r.grads.params, r.grads.hparams, r.grads.dt)) for r in (one, other))
    for a, b in zip(*leaves, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("checkpoints", CHECKPOINTS, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("kind", GRIDS)
def test_the_gradient(kind, checkpoints, tasks, device):
    problem = smooth_problem(device, tasks)
    grid = GRIDS[kind]
    if tasks and kind != "adam":  # a horizon for each task
        ends = grid.times[-1] * torch.tensor([1.0, 0.5, 0.8], device=device)
        grid = TimeGrid.uniform(ends, grid.steps)
    found = [call(o, problem, tasks, grid) for o in pair(kind, checkpoints)(stiffer(problem.loss))]
    same(*found)


@pytest.mark.parametrize("tasks", slow_but(TASKS, None))
@pytest.mark.parametrize("kind", GRIDS)
def test_compiled(kind, tasks, device):
    problem = smooth_problem(device, tasks)
    eager = pair(kind)(stiffer(problem.loss))[1]
    traced = pair(kind, compile="trace")(stiffer(problem.loss))
    found = [call(o, problem, tasks, GRIDS[kind]) for o in traced]
    assert found[1].stats.compile_misses == found[0].stats.compile_misses > 0
    expected = call(eager, problem, tasks, GRIDS[kind])
    for a, b in zip(*(tree.tensors(r.grads.params) for r in (found[1], expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", ["stabilized", "continuous"])
def test_the_error_is_estimated(kind, device):
    """Steps put together, with methods for them where they were chosen."""
    problem = smooth_problem(device)
    found = [
        call(o, problem, None, GRIDS[kind], estimate_error=True).error
        for o in pair(kind)(problem.loss)
    ]
    assert found[0].order == found[1].order
    assert found[0].doubts == found[1].doubts
    assert found[1].params == pytest.approx(found[0].params, rel=1e-9)
    assert found[0].stats == found[1].stats


@pytest.mark.parametrize("iterations", [0, 4])
@pytest.mark.parametrize("kind", ["stabilized", "continuous"])
def test_limits(kind, iterations, device):
    problem, grid = smooth_problem(device), TimeGrid.uniform(4.0, 4)
    safety = odeopt.Safety(power_iterations=iterations)
    said = []
    for opt in pair(kind, safety=safety)(stiffer(problem.loss)):
        try:
            call(opt, problem, None, grid)
            said.append("")
        except odeopt.StabilityError as error:
            said.append(str(error))
    assert said[0] == said[1]
    assert bool(said[0]) == (kind == "continuous")


@pytest.mark.parametrize("kind", slow_but(["stabilized", "adam"], "adam"))
def test_an_interrupted_solve_goes_on(kind, tmp_path):
    choose = {
        "stabilized": lambda: {"solver": OtherRKC(1e-4, 1e-6)},
        "adam": dict,
    }[kind]
    grid = TimeGrid.uniform(20.0, 8) if kind == "stabilized" else TimeGrid.from_lr(0.1, 25)

    def run(folder, limit):
        bench = Bench(25, limit=limit)
        if kind == "adam":
            bench.tweak["field"] = OtherAdam
        store = odeopt.Disk(folder, resume=True, seconds=0)
        return bench, bench.run(odeopt.Binomial(4, store), grid=grid, **choose())

    bench, whole = run(tmp_path / "whole", None)
    crashes, limit = 0, bench.calls // 3
    while True:
        try:
            found = run(tmp_path / "parts", limit)[1]
            break
        except Crash:
            crashes += 1
            assert crashes < 20
    assert crashes >= 2
    assert torch.equal(found.value, whole.value)
    for a, b in zip(*(tree.tensors(r.grads.params) for r in (found, whole)), strict=True):
        assert torch.equal(a, b)


def test_a_tier_is_counted_and_nothing_is_fetched_ahead(device):
    problem, drawer = smooth_problem(device), Drawer()
    found = [
        call(
            ODEOptimizer(GradientFlow(problem.loss), checkpoints=odeopt.Every(2, store)),
            problem, None, TimeGrid.from_lr(0.05, 9),
        )
        for store in (odeopt.Device(), drawer)
    ]  # fmt: skip
    assert torch.equal(found[0].value, found[1].value)
    device_only, own = (res.stats for res in found)
    assert own.stored_bytes == device_only.stored_bytes == device_only.device_bytes > 0
    assert own.device_bytes == 0
    assert [shelf.prefetched for shelf in drawer.opened] == [[]]


def test_spread_over_workers(device):
    problem = smooth_problem(device, 3)
    with odeopt.Workers() as workers:
        for opt in pair("stabilized")(problem.loss):
            run = odeopt.spread(opt.value_and_grad(problem.loss, tasks=True), workers)
            args = (problem.params, problem.batch, GRIDS["stabilized"], problem.outer_batch)
            same(run(*args, problem.hparams), call(opt, problem, 3, GRIDS["stabilized"]))


@pytest.mark.slow
def test_the_conformance_suites(device):
    check_solver(OtherRKC(stages=7), device)
    check_solver(OtherRKC(), device)
    check_rule(OtherAdam, device)
    check_adjoint(OtherContinuous(), device)
    check_tier(Drawer(), device)


BY_NAME = """
import torch
from odeopt import ADJOINTS, FIELDS, RK4, SOLVERS, ODEOptimizer, TimeGrid
from odeopt.registry import load_plugins
from odeopt.testing import smooth_problem

report = next(r for r in load_plugins() if r.module == "other_names.plugin")
assert (report.distribution, report.error) == ("other-names", None), report
problem = smooth_problem()

def choices(prefix):
    flow = FIELDS.get("gradient-flow")(problem.loss)
    return [
        (FIELDS.get(prefix + "adam")(problem.loss),),
        (flow, SOLVERS.get("other-rkc" if prefix else "stabilized-rk")()),
        (flow, RK4(), ADJOINTS.get(prefix + ("continuous" if prefix else "continuous-euler"))()),
    ]

grid = TimeGrid.uniform(0.5, 4)
for one, other in zip(choices(""), choices("other-"), strict=True):
    for compile in (None, "trace"):
        found = [
            ODEOptimizer(*chosen, compile=compile).value_and_grad(problem.loss)(
                problem.params, problem.batch, grid, problem.outer_batch
            )
            for chosen in (one, other)
        ]
        torch.testing.assert_close(found[0].grads.params, found[1].grads.params)
    print(type(other[-1]).__name__)
"""


def test_an_installed_package_brings_them_by_name():
    paths = [PACKAGE, PACKAGE / "installed", *PACKAGE.parents[:2], PACKAGE.parents[1] / "plugins"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-c", BY_NAME], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["OtherAdam", "OtherRKC", "OtherContinuous"]
