"""Results say their value, norms and cost in a line, and never the numbers of a tensor."""

from __future__ import annotations

import re

import pytest
import torch

import odeopt
from odeopt.tools.shown import LONGEST

RATE = 0.1


def loss(params, batch, hparams=None):
    decay = 0.0 if hparams is None else hparams.square().sum()
    return (params - batch).square().sum() + decay * params.square().sum()


def ones(device, *shape):
    return torch.ones(*shape, device=device)


def solved(device, tasks=None, **settings):
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss))
    lead = () if tasks is None else (tasks,)
    batch = settings.pop("batch", ones(device, *lead, 3))
    call = opt.value_and_grad(settings.pop("outer", loss), tasks=tasks is not None, **settings)
    return call(0 * ones(device, 3), batch, odeopt.TimeGrid.from_lr(RATE, 4), batch)


def check(value, pattern):
    text = repr(value)
    assert re.fullmatch(pattern, text), text
    assert len(text) <= LONGEST


def test_a_result(device):
    res = solved(device)
    check(res, r"Result\(value=0\.5033, \|grads\.params\|=0\.5812, 4 steps, 4 gradients, 4 HVPs\)")
    check(res.grads, r"Grads\(\|params\|=0\.5812, \|dt\|=\S+\)")
    check(res.stats, r"Stats\(steps=4, gradient_evaluations=4, hvps=4, .*\)")


def test_a_result_with_hparams_and_an_error(device):
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss))
    x, grid = ones(device, 3), odeopt.TimeGrid.from_lr(RATE, 4)
    res = opt.value_and_grad(loss, estimate_error=True)(0 * x, x, grid, x, x[:2])
    check(res, r"Result\(value=\S+, \|grads.params\|=\S+, \|grads.hparams\|=\S+, error=\S+, .*\)")
    check(res.error, r"ErrorEstimate\(value=.*, order=1, (trusted|doubts=.*)\)")


def test_tasks_that_failed_are_counted(device):
    batch = ones(device, 4, 3)
    batch[1] = float("inf")
    check(solved(device, 4), r"Result\(.*, 4 tasks, 4 steps, .*\)")
    check(solved(device, 4, on_failure="skip", batch=batch), r"Result\(.*, 4 tasks, 1 failed, .*\)")


def test_many_losses_are_a_shape_and_a_mean(device):
    res = solved(device, outer=lambda u, b: (u - b).square(), many=True)
    check(res, r"Result\(value=tensor of shape \[3\], mean 0\.1678, .*\)")


def test_what_is_not_finite_shows():
    nan = torch.tensor(float("nan"))
    grads = odeopt.Grads(nan, None, nan, None)
    res = odeopt.Result(nan, None, grads, torch.tensor(2), odeopt.Stats())
    check(res, r"Result\(value=nan, \|grads.params\|=nan, failed\)")


def test_a_solution_inside_and_outside_of_vmap(device):
    opt, seen = odeopt.ODEOptimizer(odeopt.GradientFlow(loss)), []
    grid = odeopt.TimeGrid.from_lr(RATE, 4, observe=[1])

    def solve(x):
        sol = opt.solve(0 * x, x, grid)
        seen.append(sol)
        check(sol, r"Solution\((\|params\|=1\.023|params=tensor of shape \[3\]), 1 observed, .*\)")
        return sol.params

    solve(ones(device, 3))
    torch.func.vmap(solve)(ones(device, 2, 3))
    assert len(seen) == 2


def test_a_recorded_loop(device):
    model = torch.nn.Linear(3, 1, device=device)
    data = ones(device, 8, 3), ones(device, 8, 1)
    mse = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()  # noqa: E731
    loop = odeopt.RecordedLoop(model, torch.optim.Adam(model.parameters(), 0.1))
    for _ in range(2):
        loop.step(mse, data)
    check(loop, r"RecordedLoop\(Linear, Adam, 2 steps, 2 graphs kept\)")
    res = loop.value_and_grad(mse, data)
    check(res, r"LoopResult\(value=\S+, \|grads.params\|=\S+, \|grads.lr\|=\S+, 2 steps, 2 HVPs\)")
    check(res.grads, r"LoopGrads\(\|params\|=\S+, \|lr\|=\S+\)")


def test_a_learner(device, tmp_path):
    x = ones(device, 20, 3)
    pool = odeopt.TaskPool(x, x)
    learner = odeopt.MetaLearner("maml", 0 * x[0], pool, loss=loss, folder=tmp_path, clip=2.0)
    check(pool, r"TaskPool\(tensor of shape \[20, 3\], validation=tensor of shape \[20, 3\]\)")
    check(pool(0), r"TaskBatch\(5 tasks, train=tensor of shape \[5, 3\], .*\)")
    assert ", Adam, 0 updates, clip=2.0" in repr(learner)
    (step,) = learner.fit(1)
    check(step, r"Step\(update=0, value=\d\.?\d*, grad_norm=.*\)")
    assert ", Adam, 1 update, " in repr(learner)
    meta = learner.method(learner.params, pool(0))
    check(meta, r"MetaGradient\(value=\S+, \|grads.params\|=\S+, 5 tasks, 5 steps, .*\)")
    check(meta.grads, r"MetaGrads\(\|params\|=\S+\)")


def test_a_bilevel_problem(device):
    grid, x = odeopt.TimeGrid.from_lr(RATE, 2), ones(device, 3)
    problem = odeopt.BilevelProblem(odeopt.SGD(loss), loss, grid)
    inner = r"ODEOptimizer\(SGD\(loss\), DiscreteAdjoint\(\), Graphs\(\)\)"
    whole = r"TimeGrid\(0 to 0.2, 2 steps\)"
    check(problem, rf"BilevelProblem\({inner}, outer_loss=loss, grid={whole}\)")
    found = problem.minimize(x[0], x, x, x, 1, show_progress=False)
    check(found, r"Minimized\(hparams=tensor\(\S+\), 1 update, value=\S+ before the last one\)")


GUESSES = {
    "rate": (0.1, r"from_lr\(0\.1, steps=500\)"), "steps": (10, r"from_lr\(0\.01, steps=10\)"),
    "rate in a tensor": (torch.tensor(0.25), r"from_lr\(0\.25, steps=500\)"),
    "rates": ([0.1, 0.2], r"from_lr\(rates\)"),
    "times": (torch.tensor([0.123456, 0.5]), r"tensor of shape \[2\]; .*TimeGrid\(times\)"),
}  # fmt: skip


@pytest.mark.parametrize("guess", GUESSES)
def test_what_is_given_for_a_grid_is_made_one_in_the_message(device, guess):
    given, message = GUESSES[guess]
    x, flow = ones(device, 2), odeopt.GradientFlow(loss)
    opt = odeopt.ODEOptimizer(flow)
    calls = (
        lambda: opt.solve(x, x, given), lambda: opt.value_and_grad(loss)(x, x, given, x),
        lambda: odeopt.from_tolerance(flow, 1e-3).solve(x, x, given),
        lambda: odeopt.BilevelProblem(flow, loss, given),
        lambda: odeopt.InnerLoop(opt, loss, given),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(odeopt.InputError, match=rf"grid is .*{message}") as caught:
            call()
        assert "0.123456" not in str(caught.value)


def test_a_module_in_place_of_a_loss_is_told_what_makes_one_of_it(device):
    x, grid = ones(device, 3), odeopt.TimeGrid.from_lr(RATE, 2)
    model = torch.nn.Linear(3, 1, device=device)
    with pytest.raises(odeopt.InputError, match=r"loss cannot be .*a module: odeopt\.from_module"):
        odeopt.ODEOptimizer(odeopt.SGD(model)).solve(x, x, grid)
    criterion = torch.nn.MSELoss()  # which is a loss
    assert odeopt.ODEOptimizer(odeopt.SGD(criterion)).solve(x, x, grid).params.shape == (3,)


def test_a_function_in_place_of_a_module_is_refused(device):
    with pytest.raises(odeopt.InputError, match=r"model is loss; expected a torch\.nn\.Module"):
        odeopt.RecordedLoop(loss, torch.optim.SGD([ones(device, 2)], 0.1))


def test_true_is_no_compile_backend():
    with pytest.raises(odeopt.InputError, match="compile is True; expected None, or a name"):
        odeopt.ODEOptimizer(odeopt.SGD(loss), compile=True)
