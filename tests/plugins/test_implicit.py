"""iMAML against closed forms; linear solvers; Newton's method."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odeopt_plugins.imaml import NewtonCG, imaml_gd, imaml_hf

import odeopt
from odeopt.testing import Quadratic

seeds = st.integers(0, 10_000)
D = 4


def inner(params, batch, hparams=None):
    """A quadratic per task, batch = (matrix, centre), with a learned penalty."""
    value = Quadratic(*batch).loss(params, batch[1])
    return value if hparams is None else value + torch.exp(hparams) / 2 * params.square().sum()


def outer(params, batch, hparams=None):
    value = torch.cosh(params - batch).sum()
    return value if hparams is None else value * torch.sin(hparams)


def draw(seed, tasks, device):
    """(theta, (train, validation), log of the penalty)."""
    random = torch.Generator().manual_seed(seed)
    spectra = 0.1 + 2 * torch.rand(tasks, D, generator=random)
    parts = [Quadratic.from_spectrum(s.tolist(), seed + k) for k, s in enumerate(spectra)]
    train = tuple(
        torch.stack([getattr(part, name) for part in parts]).to(device)
        for name in ("matrix", "center")
    )
    theta, *validation = torch.randn(tasks + 1, D, generator=random)
    penalty = torch.randn((), generator=random) / 2 - 1
    return theta.to(device), (train, torch.stack(validation).to(device)), penalty.to(device)


def minimiser(theta, train, strength, hparams=None):
    matrix, center = train
    extra = strength if hparams is None else strength + torch.exp(hparams)
    regular = matrix + extra * torch.eye(D, device=theta.device)
    return torch.linalg.solve(regular, matrix @ center + strength * theta)


def methods(strength, steps=(150, 3), **settings):
    lr = 1.8 / (2.1 + 2 * strength + 2.5)
    return [
        imaml_gd(inner, outer, lr=lr, steps=steps[0], strength=strength, **settings),
        imaml_hf(inner, outer, steps=steps[1], strength=strength, **settings),
    ]


@settings(max_examples=8)
@given(seed=seeds, tasks=st.integers(1, 3), strength=st.floats(0.3, 3), learned=st.booleans())
def test_imaml_is_the_gradient_of_the_minimiser(seed, tasks, strength, learned, few, device):
    theta, batch, penalty = draw(seed, tasks, device)
    given = (theta, penalty) if learned else (theta,)

    def end(train, validation, theta, hparams=None):
        return outer(minimiser(theta, train, strength, hparams), validation, hparams)

    values, grads = few.autograd(end, batch, *given)
    for method in methods(strength, cg_steps=D):
        few.assert_equal(method(theta, batch, *given[1:]), values, grads, 1e-8)


@settings(max_examples=6)
@given(seed=seeds, strength=st.floats(0.3, 3))
def test_imaml_is_the_formula_of_its_paper(seed, strength, few, device):
    theta, batch, _ = draw(seed, 1, device)
    train, validation = few.at(batch, 0)
    slope = torch.func.grad(outer)(minimiser(theta, train, strength), validation)
    eye = torch.eye(D, device=device)
    expected = strength * torch.linalg.inv(train[0] + strength * eye) @ slope
    for method in methods(strength, cg_steps=D):
        assert few.relative(method(theta, batch).grads.params, expected) <= 1e-8


@pytest.mark.slow
@given(seed=seeds, strength=st.floats(0.3, 3), cg_steps=st.integers(1, D), damping=st.floats(0, 2))
def test_imaml_reports_the_residual(seed, strength, cg_steps, damping, few, device):
    """With v = gradient / strength of each task."""
    theta, batch, _ = draw(seed, 3, device)
    choices = {"cg_steps": cg_steps, "damping": damping, "stationarity": None}
    for method in methods(strength, (20, 1), **choices):
        adapted = method.adapt(theta, batch[0])
        residual = method(theta, batch).diagnostics["residual"]
        assert residual.shape == (3,)
        for task in range(3):
            train, validation = few.at(batch, task)
            alone = method(theta, few.at(batch, [task]))
            v = alone.grads.params / strength
            lam = torch.func.grad(outer)(adapted[task], validation)
            rest = lam - train[0] @ v - (strength + damping) * v
            assert abs(float(rest.norm() / lam.norm() - residual[task])) <= 1e-10


@given(seed=seeds, steps=st.integers(1, 3))
def test_imaml_warns_where_the_inner_problem_has_not_converged(seed, steps, device):
    theta, batch, _ = draw(seed, 2, device)
    with pytest.warns(odeopt.OdeoptWarning, match="not converged"):
        res = imaml_gd(inner, outer, lr=0.02, steps=steps)(theta, batch)
    assert float(res.diagnostics["stationarity"].max()) > 0.1
    silent = [
        imaml_gd(inner, outer, lr=0.02, steps=steps, stationarity=None),
        imaml_gd(inner, outer, lr=0.3, steps=100),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [method(theta, batch) for method in silent]
    assert not caught
    assert float(results[1].diagnostics["stationarity"].max()) < 1e-6


@given(seed=seeds)
def test_stationarity_is_the_ratio_of_gradient_norms(seed, few, device):
    theta, batch, _ = draw(seed, 2, device)
    method = imaml_gd(inner, outer, lr=0.1, steps=3, strength=0.7, stationarity=None)
    adapted, found = method.adapt(theta, batch[0]), method(theta, batch)
    for task in range(2):
        train = few.at(batch[0], task)
        ends = [
            torch.func.grad(lambda u, b=train: inner(u, b) + 0.35 * (u - theta).square().sum())(u)
            for u in (adapted[task], theta)
        ]
        expected = float(ends[0].norm() / ends[1].norm())
        assert abs(float(found.diagnostics["stationarity"][task]) - expected) <= 1e-12


# --- linear solvers --------------------------------------------------------------------------


def systems(seed, tasks, device):
    theta, (train, _), _ = draw(seed, tasks, device)
    return train[0], torch.stack([theta] * tasks) + train[1]


def solved(solver, matrices, b):
    return torch.func.vmap(lambda a, c: solver.solve(lambda v: a @ v, c))(matrices, b)


@given(seed=seeds)
def test_conjugate_gradients_solve_in_d_steps(seed, few, device):
    matrices, b = systems(seed, 3, device)
    expected = torch.linalg.solve(matrices, b)
    for steps in (D, 2 * D):
        found = solved(odeopt.ConjugateGradient(steps), matrices, b)
        assert few.relative(found, expected) <= 1e-8


@given(seed=seeds, steps=st.integers(1, D))
def test_conjugate_gradients_are_best_in_the_krylov_space(seed, steps, few, device):
    """The Galerkin condition: the residual is orthogonal to b, A b, A^2 b, ..."""
    matrices, b = systems(seed, 1, device)
    a, b = matrices[0], b[0]
    basis = [b]
    for _ in range(steps - 1):
        basis.append(a @ basis[-1])
    q = torch.linalg.qr(torch.stack(basis, dim=1))[0]
    expected = q @ torch.linalg.solve(q.T @ a @ q, q.T @ b)
    assert few.relative(solved(odeopt.ConjugateGradient(steps), a[None], b[None])[0], expected) <= (
        1e-7
    )


def test_conjugate_gradients_stay_put(device):
    eye = torch.eye(3, device=device)
    b = torch.ones(3, device=device)
    solver = odeopt.ConjugateGradient(5)
    assert torch.equal(solver.solve(lambda v: 0 * v, b), torch.zeros_like(b))
    assert torch.equal(solver.solve(lambda v: -eye @ v, b), torch.zeros_like(b))
    assert torch.equal(solver.solve(lambda v: eye @ v, 0 * b), 0 * b)
    assert torch.equal(solver.solve(lambda v: 2 * v, b), b / 2)


@given(seed=seeds, steps=st.integers(1, 6), rate=st.floats(0.05, 0.8))
def test_neumann_is_its_series(seed, steps, rate, few, device):
    matrices, b = systems(seed, 2, device)
    contraction = torch.eye(D, device=device) - rate * matrices
    powers = [torch.linalg.matrix_power(contraction, i) for i in range(steps)]
    expected = rate * (sum(powers) @ b[..., None])[..., 0]
    assert few.relative(solved(odeopt.Neumann(steps, rate), matrices, b), expected) <= 1e-12
    many = solved(odeopt.Neumann(1000, 0.8), matrices, b)
    assert few.relative(many, torch.linalg.solve(matrices, b)) <= 1e-8


@pytest.mark.parametrize(
    "make",
    [
        lambda: odeopt.ConjugateGradient(0),
        lambda: odeopt.ConjugateGradient(True),
        lambda: odeopt.Neumann(3, 0.0),
        lambda: odeopt.Neumann(0, 0.1),
        lambda: odeopt.ImplicitAdjoint(damping=-1.0),
    ],
)
def test_wrong_settings_are_refused(make):
    with pytest.raises(odeopt.InputError, match="expected"):
        make()


# --- Newton's method -------------------------------------------------------------------------


def newton(loss, steps, u0, batch, cg_steps):
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), NewtonCG(cg_steps))
    grid = odeopt.TimeGrid.from_lr(1.0, steps, observe=range(steps + 1))
    with torch.no_grad():
        return opt.solve(u0, batch, grid).observed


@given(seed=seeds)
def test_newton_minimises_a_quadratic_in_one_step(seed, few, device):
    theta, batch, _ = draw(seed, 1, device)
    train = few.at(batch[0], 0)
    assert few.relative(newton(inner, 1, theta, train, D)[-1], train[1]) <= 1e-8


def rounded(u, batch):
    """Convex; its curvature fades far from the minimiser, so that full Newton steps overshoot."""
    offset = batch[0] @ (u - batch[1])
    return torch.log(torch.cosh(offset)).sum() + 0.01 * offset.square().sum()


@given(seed=seeds, far=st.floats(3, 30))
def test_newton_decreases_a_convex_loss_from_far_away(seed, far, few, device):
    theta, batch, _ = draw(seed, 1, device)
    matrix, center = few.at(batch[0], 0)
    train = (matrix + 0.5 * torch.eye(D, device=device), center)
    states = newton(rounded, 12, center + far * theta, train, D)
    losses = torch.stack([rounded(state, train) for state in states])
    assert bool((losses.diff() <= 1e-12 * losses[0]).all())
    assert losses[1] < losses[0]
    assert losses[-1] < 0.1 * losses[0]


def lopsided(u, batch):
    """Convex, with the slope -1 far on the left and 0.85 far on the right."""
    return (1.85 * torch.nn.functional.softplus(u) - u + batch).sum()


def test_newton_does_not_climb_the_other_side(device):
    u0 = torch.tensor([-3.5], device=device)
    states = newton(lopsided, 1, u0, torch.zeros(1, device=device), 1)
    losses = [float(lopsided(state, torch.zeros(1, device=device))) for state in states]
    assert losses[1] < losses[0]


class Tightening(odeopt.GradientField):
    r"""The potential $(1 + t) |y|^2 / 2 - b \cdot y$, whose minimiser $b / (1 + t)$ moves."""

    def potential(self, t, state, consts, hparams, batch):
        del consts, hparams
        return 0.5 * (1 + t) * state.square().sum() - (batch * state).sum()


def test_the_minimiser_is_that_of_the_last_time(device):
    """With the stationarity there over that at the first time."""
    start, pull = torch.tensor([3.0, -1.0], device=device), torch.tensor([2.0, 5.0], device=device)
    opt = odeopt.ODEOptimizer(
        Tightening(), odeopt.Euler(), odeopt.ImplicitAdjoint(stationarity=None)
    )
    grid = odeopt.TimeGrid([0.5, 0.9, 1.2, 2.0])
    weights = torch.tensor([1.0, -2.0], device=device)
    res = opt.value_and_grad(lambda y, b: y @ b)(
        start, pull.clone().requires_grad_(), grid, weights
    )
    torch.testing.assert_close(res.grads.batch, weights / 3.0)
    assert res.stats.hvps == odeopt.ConjugateGradient().steps + 1
    end = opt.solve(start, pull, grid).params
    ratio = (3.0 * end - pull).norm() / (1.5 * start - pull).norm()
    torch.testing.assert_close(res.diagnostics["stationarity"], ratio)


def test_products_are_made_as_was_asked_for():
    assert isinstance(odeopt.ImplicitAdjoint().differentiation, odeopt.ReverseMode)
    mixed = odeopt.ForwardOverReverse()
    assert odeopt.ImplicitAdjoint(differentiation=mixed).differentiation is mixed
    with pytest.raises(odeopt.InputError, match="differentiation is 'forward'"):
        odeopt.ImplicitAdjoint(differentiation="forward")


@pytest.mark.parametrize("given", ["cg", odeopt.ConjugateGradient])
def test_a_linear_solver_that_is_none_is_refused(given):
    with pytest.raises(odeopt.InputError, match=r"linear_solver is .*expected e\.g\. Conj"):
        odeopt.ImplicitAdjoint(linear_solver=given)
