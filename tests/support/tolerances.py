"""A smooth problem solved by `from_tolerance`, and what that costs."""

from odeopt import GradientFlow
from odeopt.testing.problems import smooth_problem


def on_smooth(opt, grid, device=None, tasks=None, hparams=False, **settings):
    """The result of an optimiser."""
    problem = smooth_problem(device, tasks)
    path = opt.value_and_grad(problem.loss, tasks=tasks is not None, **settings)
    given_hparams = problem.hparams if hparams else None
    return path(problem.params, problem.batch, grid, problem.outer_batch, given_hparams)


def flow(device=None):
    """Its field."""
    return GradientFlow(smooth_problem(device).loss)


def cost(res):
    """Gradients and Hessian-vector products."""
    return res.stats.gradient_evaluations + res.stats.hvps
