"""The conformance suites of odeopt, and what is special about these three."""

import pytest
import torch
from odeopt_signflow import DampedAdjoint, DampedSignMAML, SignFlow

import odeopt
from odeopt.testing import (
    check_adjoint,
    check_field,
    check_method,
    relative_error,
    smooth_problem,
)


@pytest.fixture(autouse=True)
def _double(monkeypatch):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def linear(params, batch):
    return (params * batch).sum()


def gradient(adjoint, steps=40, solver=None):
    """W.r.t. the initialisation of gradient flow on smooth_problem, up to T = 2."""
    problem = smooth_problem()
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss), solver, adjoint)
    call = opt.value_and_grad(problem.loss)
    grid = odeopt.TimeGrid.uniform(2.0, steps)
    return call(problem.params, problem.batch, grid, problem.outer_batch).grads.params


def test_the_field_conforms():
    check_field(odeopt.FIELDS.example("sign-flow"))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_the_adjoint_conforms(gamma):
    check_adjoint(DampedAdjoint(gamma))


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_the_method_conforms(gamma):
    check_method(lambda loss: DampedSignMAML(loss, lr=0.02, gamma=gamma))


def test_a_constant_gradient_gives_the_smoothed_sign():
    slope = torch.tensor([3.0, -0.4, 0.0])
    opt = odeopt.ODEOptimizer(SignFlow(linear, softening=0.3))
    sol = opt.solve(torch.zeros(3), slope, odeopt.TimeGrid.from_lr(0.1, 7))
    expected = -0.7 * slope / torch.hypot(slope, torch.tensor(0.3))
    torch.testing.assert_close(sol.params, expected)


def test_the_gradient_with_respect_to_the_softening():
    def loss(params, batch, hparams):
        return linear(params, batch)

    field = SignFlow(loss, softening=lambda hparams: hparams["eps"])
    call = odeopt.ODEOptimizer(field).value_and_grad(lambda u, b, hparams: u.sum())
    slope, eps = torch.tensor([3.0, -0.4]), torch.tensor(0.3)
    grid = odeopt.TimeGrid.from_lr(0.1, 7)
    found = call(torch.zeros(2), slope, grid, None, {"eps": eps}).grads.hparams["eps"]
    expected = 0.7 * (slope * eps / (slope**2 + eps**2) ** 1.5).sum()
    torch.testing.assert_close(found, expected)


def test_gamma_1_is_the_exact_adjoint_and_gamma_0_first_order():
    exact = gradient(odeopt.DiscreteAdjoint())
    first = gradient(odeopt.FirstOrderAdjoint())
    assert relative_error(gradient(DampedAdjoint(1.0)), exact) < 1e-14
    assert relative_error(gradient(DampedAdjoint(0.0)), first) < 1e-14
    assert relative_error(first, exact) > 0.1


def test_the_bias_falls_with_1_minus_gamma():
    exact = gradient(odeopt.DiscreteAdjoint())
    errors = [relative_error(gradient(DampedAdjoint(g)), exact) for g in (0.9, 0.99, 0.999)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2] > 0


def test_a_finer_grid_has_the_same_limit():
    coarse, fine, finest = (gradient(DampedAdjoint(0.5), n, odeopt.RK4()) for n in (20, 80, 640))
    assert relative_error(fine, finest) < 0.35 * relative_error(coarse, finest)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_wrong_gammas_are_refused(wrong):
    with pytest.raises(odeopt.InputError, match="from 0 to 1"):
        DampedAdjoint(wrong)


@pytest.mark.parametrize("make", [SignFlow, DampedSignMAML])
def test_a_softening_that_is_not_positive_is_refused(make):
    with pytest.raises(odeopt.InputError, match="positive"):
        make(linear, softening=0.0)


def test_the_adjoint_refuses_a_solver_that_chooses_its_own_steps():
    with pytest.raises(odeopt.CompatibilityError, match="DormandPrince"):
        gradient(DampedAdjoint(0.5), solver=odeopt.DormandPrince(1e-6, 1e-8))


def test_the_method_says_that_it_needs_its_hparams():
    problem = smooth_problem(tasks=2)
    method = DampedSignMAML(problem.loss)
    with pytest.raises(odeopt.InputError, match="init_hparams"):
        method(problem.params, (problem.batch, problem.outer_batch), None)


def test_the_learner_takes_the_method_by_name():
    model = odeopt.ModuleLoss(torch.zeros(3), None, lambda u, b: ((u - b) ** 2).mean())
    pool = odeopt.TaskPool(torch.rand(8, 3) + 1, torch.rand(8, 3) + 1)
    learner = odeopt.MetaLearner("damped-sign-maml", model, pool, show_progress=False)
    before = learner.hparams["log_softening"].item()
    learner.fit(3)
    assert learner.hparams["log_softening"].item() != before
