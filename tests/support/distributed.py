"""What the tests of workers share: the calls, and how several processes are started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import other_names as copies
import torch
from support import tasks as problems

import odeopt
from odeopt.testing import smooth_problem
from odeopt.tools import tree

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "tests" / "plugin_package"
PROGRAM = ROOT / "tests" / "outer" / "workers" / "program.py"


def plain(call):
    """In place of `spread` in one process."""
    return call


def regression(spread, tasks, name="rk4-density", grid=None, need=(), **settings):
    """A tanh network; `need` names what requires grad."""
    torch.manual_seed(tasks)
    params, _, _, hparams = problems.problem(None)
    batch, outer_batch = (torch.randn(tasks, 5, 2), torch.randn(tasks, 5)), torch.randn(tasks, 3, 2)
    if "batch" in need:
        batch = (batch[0], batch[1].requires_grad_())
    call = problems.optimizer(name).value_and_grad(settings.pop("outer", problems.outer),
                                                   tasks=True, **settings)  # fmt: skip
    grid = odeopt.TimeGrid.uniform(0.6, 6) if grid is None else grid
    return spread(call)(params, batch, grid, outer_batch, hparams)


def with_aux(params, batch, hparams, observed):
    extra = sum(state["v"].square().sum() for state in observed)
    return problems.outer(params, batch, hparams) + extra, {"shift": params["v"].exp()}


def stopped(spread):
    torch.manual_seed(1)
    event = odeopt.StopWhen.loss_below(lambda p, b: (p - b).square().sum(), 0.05, torch.randn(3, 2))
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(lambda p, b: (p - b).square().sum()))
    call = opt.value_and_grad(lambda p, b: (p * b).sum(), tasks=True, stop=event)
    grid = odeopt.TimeGrid.from_lr(0.05, 30)
    return spread(call)(torch.ones(2), event.batch.clone(), grid, torch.randn(3, 2))


def minibatches(spread):
    torch.manual_seed(2)
    data, held_out = torch.randn(4, 3, 2), torch.randn(3, 2)
    opt = odeopt.ODEOptimizer(odeopt.Adam(lambda p, b: (p - b).cosh().sum()))
    call = opt.value_and_grad(lambda p, b: (p - b).square().sum(), tasks=True)
    grid = odeopt.TimeGrid.from_lr(0.1, 8)
    stream = odeopt.Stream(lambda k: data[k % 4])
    return spread(call)(torch.ones(2), stream, grid, held_out)


def warm(spread):
    torch.manual_seed(3)
    opt = odeopt.ODEOptimizer(odeopt.HeavyBall(lambda p, b: (p - b).square().sum(), 1.0))
    call = opt.value_and_grad(lambda p, b: (p * b).sum(), tasks=True)
    start = opt.solve(torch.ones(2), torch.randn(3, 2), odeopt.TimeGrid.uniform(0.3, 3), tasks=True)
    state = tree.map_tensors(torch.Tensor.detach, start.state)
    grid = odeopt.TimeGrid.uniform(0.4, 4)
    return spread(call)(torch.ones(2), torch.randn(3, 2), grid, torch.randn(3, 2), state=state)


def copied(spread, kind):
    """Built-ins, and the same written again with states in a tier of their own."""
    problem = smooth_problem(tasks=3)
    grid = odeopt.TimeGrid.uniform(0.8, 8)
    flow, rkc = odeopt.GradientFlow(problem.loss), (1e-3, 1e-5)
    both = {
        "stabilized": ((flow, odeopt.StabilizedRK(*rkc)), (flow, copies.OtherRKC(*rkc))),
        "adam": ((odeopt.Adam(problem.loss),), (copies.OtherAdam(problem.loss),)),
        "continuous": (
            (flow, odeopt.RK4(), odeopt.ContinuousAdjoint(odeopt.Euler())),
            (flow, odeopt.RK4(), copies.OtherContinuous()),
        ),
    }[kind]
    found = []
    for choices, store in zip(both, (odeopt.Device(), copies.Drawer()), strict=True):
        opt = odeopt.ODEOptimizer(*choices, checkpoints=odeopt.Every(2, store=store))
        call = spread(opt.value_and_grad(problem.loss, tasks=True))
        args = (problem.params, problem.batch, grid, problem.outer_batch, problem.hparams)
        found.append(numbers(call(*args)))
    for one in found:
        del one["stats"]["device_bytes"]  # a drawer is none
    return found


COPIES = ("stabilized", "adam", "continuous")


def implicit(spread):
    torch.manual_seed(4)
    adjoint = odeopt.ImplicitAdjoint(stationarity=None)
    field = odeopt.RegularizedFlow(lambda p, b: (p - b).cosh().sum(), 1.0)
    call = odeopt.ODEOptimizer(field, adjoint=adjoint).value_and_grad(
        lambda p, b: (p * b).sum(), tasks=True
    )
    grid = odeopt.TimeGrid.from_lr(0.1, 40)
    return spread(call)(torch.ones(2), torch.randn(3, 2), grid, torch.randn(3, 2))


def failing(spread, data, on_failure="skip"):
    """Gradient descent on b u^4 diverges where b = 1; the adjoint of sqrt(u^2) at 0 too."""
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(lambda p, b: b * p.pow(4).sum()))
    call = opt.value_and_grad(lambda p, b: b * p.sum(), tasks=True, on_failure=on_failure)
    batch = torch.tensor(data).requires_grad_()
    return spread(call)(torch.full((2,), 3.0), batch, odeopt.TimeGrid.from_lr(1.0, 20), batch)


def infinite_value(spread):
    """The last two tasks, those of worker 1, end well but have losses that are not finite."""
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(lambda p, b: b * p.square().sum()))
    call = opt.value_and_grad(lambda p, b: (p * b).sum(), tasks=True, on_failure="skip")
    outer_batch = torch.tensor([1.0, 2.0, torch.inf, -torch.inf])
    return spread(call)(torch.ones(2), torch.ones(4), odeopt.TimeGrid.from_lr(0.1, 5), outer_batch)


HORIZONS = torch.tensor([0.6, 0.1, 0.9])
CASES = {
    "uneven": lambda spread: regression(spread, 5, need=["batch"]),
    "even, replayed": lambda spread: regression(spread, 4, "midpoint-binomial"),
    "fewer tasks than workers": lambda spread: regression(spread, 1, need=["batch"]),
    "horizons": lambda spread: regression(spread, 3, grid=odeopt.TimeGrid.uniform(HORIZONS, 6)),
    "no steps": lambda spread: regression(spread, 3, grid=odeopt.TimeGrid.uniform(0.0, 0)),
    "observed, aux": lambda spread: regression(
        spread, 3, grid=odeopt.TimeGrid.uniform(0.6, 6, observe=[0, 3]), outer=with_aux,
        has_aux=True,
    ),
    "adaptive": lambda spread: regression(spread, 3, "adaptive"),
    "continuous": lambda spread: regression(spread, 5, "continuous-hermite"),
    "stopped": stopped,
    "minibatches": minibatches,
    "warm": warm,
    "implicit": implicit,
    "one fails": lambda spread: failing(spread, [1e-3, 2e-3, 3e-3, 1.0, 4e-3]),
    "all of worker 1 fail": lambda spread: failing(spread, [1e-3, 2e-3, 1.0, 2.0]),
    "all of worker 0 fail": lambda spread: failing(spread, [1.0, 2.0, 3e-3]),
    "infinite values": infinite_value,
}  # fmt: skip


def numbers(res):
    """What must agree."""
    # few tasks keep graphs, which many do not
    stats = vars(
        replace(res.stats, compile_seconds=0.0, recorded_steps=0, graph_bytes=0, plan=None)
    )
    return {
        "value": res.value, "values": res.values, "status": res.status, "aux": res.aux,
        **vars(res.grads), "diagnostics": dict(res.diagnostics), "stats": dict(stats),
    }  # fmt: skip


def learner(method="maml", **keywords):
    """A learner of the smooth problem: 12 tasks in batches of 5."""
    problem = smooth_problem(tasks=12)
    pool = odeopt.TaskPool(problem.batch, problem.outer_batch, 5)
    settings = {"lr": 0.1, "steps": 3} | keywords.pop("settings", {})
    optimizer = keywords.pop("optimizer", lambda leaves: torch.optim.Adam(leaves, lr=0.01))
    tasks = keywords.pop("tasks", pool)
    return odeopt.MetaLearner(
        method, problem.params, tasks, optimizer,
        loss=problem.loss, settings=settings, validation=pool.select([0, 1, 2]),
        **{"validate_every": 3, **keywords},
    )  # fmt: skip


def wild_learner(name="maml", **keywords):
    """Its third task, the only one of worker 1, diverges."""
    data = torch.tensor([[0.1], [0.3], [1e200]])
    tasks = odeopt.TaskPool(data, data, batch_size=3, names=("calm", "mild", "wild"))
    on_failure = keywords.pop("on_failure", "skip")
    method = odeopt.METHODS.get(name)(
        lambda p, b: (b * p.square()).sum(), lr=0.5, steps=5, on_failure=on_failure
    )
    return odeopt.MetaLearner(method, torch.ones(2), tasks, **keywords)


def meta_gradient(name, spread):
    """One call of a registered method, and an evaluation, over three tasks."""
    problem = smooth_problem(tasks=3)
    make = odeopt.METHODS.example(name)
    if name == "a-maml":  # whose example is accurate to 1e-11 and takes seconds
        solver = odeopt.DormandPrince(1e-8, 1e-10)
        make = partial(odeopt.METHODS.get(name), lr=0.05, steps=10, solver=solver)
    method = spread(make(problem.loss))
    batch = odeopt.TaskBatch(problem.batch, problem.outer_batch)
    hparams = method.init_hparams(problem.params)
    found = method(problem.params, batch, hparams)
    values = method.evaluate(problem.params, batch, hparams)
    parts = (found.value, *found.grads, found.values, found.status, dict(found.diagnostics))
    return parts, values


def learned(found):
    """What a learner has learned, and what it wrote down."""
    history = [(s.value, s.grad_norm, s.change, s.validation, s.failed) for s in found.history()]
    return {"params": found.params, "hparams": found.hparams, "history": history}


def start(name, folder, count=2, program=PROGRAM, **environment):
    """Processes that run one part of the program, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests"), str(PLUGIN)])
    common = {
        **os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": "",
        **environment,
    }  # fmt: skip
    command = [sys.executable, str(program), name, str(folder)]
    return [
        subprocess.Popen(
            command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(count)
    ]  # fmt: skip


def finish(processes, timeout=100.0):
    """What they print, and how they ended; none is left running."""
    try:
        texts = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        stop(processes)
    return texts, [process.returncode for process in processes]


def stop(processes):
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()
