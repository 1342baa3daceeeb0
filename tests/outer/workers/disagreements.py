"""Calls for which each worker has made something else; all but one must be refused."""

from __future__ import annotations

import os

import torch
from support import distributed as cases

import odeopt
from odeopt.outer.workers.spreading import SpreadMethod


def disagreements(workers):
    """Calls by name."""
    return {**of_gradients(workers), **of_methods(workers), **of_learners(workers)}


def square(params, batch):
    return (params - batch).square().sum()


def two(params, batch):
    return square(params, batch), torch.ones(2)


def by_rank(params, batch):
    return square(params, batch), torch.ones(2 + int(os.environ["RANK"]))


def scaled(scale):
    return lambda params, batch: scale * square(params, batch)


def of_gradients(workers):
    rank, scale = workers.rank, 1.0 + workers.rank
    batch = torch.linspace(0.1, 0.6, 6).reshape(3, 2)
    flow, rule = odeopt.GradientFlow(square), odeopt.Adam(square, betas=(0.9 / scale, 0.999))
    adjoint = (odeopt.DiscreteAdjoint(), odeopt.FirstOrderAdjoint())[rank]

    def call(field=flow, lr=0.1, steps=3, outer=square, on_failure="raise", **settings):
        opt, aux = odeopt.ODEOptimizer(field, **settings), outer in (two, by_rank)
        run = opt.value_and_grad(outer, tasks=True, on_failure=on_failure, has_aux=aux)
        grid = odeopt.TimeGrid.from_lr(lr, steps)
        return odeopt.spread(run, workers)(torch.zeros(2), batch, grid, batch)

    return {
        "another rate": lambda: call(lr=0.1 * scale),
        "other steps": lambda: call(steps=3 + rank),
        "another solver": lambda: call(solver=(odeopt.Euler(), odeopt.RK4())[rank]),
        "another adjoint": lambda: call(adjoint=adjoint),
        "another option": lambda: call(rule),
        "a captured number": lambda: call(odeopt.GradientFlow(scaled(scale))),
        "another outer loss": lambda: call(outer=(square, scaled(2.0))[rank]),
        "another on_failure": lambda: call(on_failure=("raise", "skip")[rank]),
        "other aux": lambda: call(outer=by_rank),
        "the same": lambda: call(outer=two),
    }


def of_methods(workers):
    rank, problem = workers.rank, cases.smooth_problem(tasks=3)
    tasks = problem.batch, problem.outer_batch

    def method(name="maml", **settings):
        made = odeopt.METHODS.get(name)(problem.loss, **{"lr": 0.1, "steps": 2, **settings})
        return SpreadMethod(made, workers)

    return {
        "a method's rate": lambda: method(lr=0.1 * (1 + rank))(problem.params, tasks),
        "a method's steps": lambda: method(steps=2 + rank).evaluate(problem.params, tasks),
        "another method": lambda: method(("maml", "fomaml")[rank])(problem.params, tasks),
    }


def of_learners(workers):
    rank, scale = workers.rank, 1.0 + workers.rank

    def learn(updates=1, **keywords):
        return cases.learner(workers=workers, **keywords).fit(updates)

    def with_other_rates_later():
        made = []

        def remember(leaves):
            made.append(torch.optim.SGD(leaves, lr=0.01))
            return made[0]

        def callback(step):
            made[0].param_groups[0]["lr"] *= scale

        learn(2, optimizer=remember, callback=callback)

    return {
        "another clip": lambda: learn(clip=scale),
        "another outer rate": lambda: learn(optimizer=lambda p: torch.optim.SGD(p, 0.01 * scale)),
        "another outer rate later": with_other_rates_later,
        "more updates": lambda: learn(1 + rank),
        "other validation": lambda: learn(validate_every=2 + rank),
    }
