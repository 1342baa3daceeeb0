"""What changes between a solve and its backward pass is noticed, or has no effect."""

from __future__ import annotations

import pytest
import torch

import odeopt
from odeopt.solver import StepSolver
from odeopt.solver.base import reached
from odeopt.testing import relative_error

STATES = {"checkpoints": odeopt.Every(1)}
"""Nothing is evaluated again where graphs are kept."""

CHOICES = {
    "gradient descent": lambda loss: odeopt.ODEOptimizer(odeopt.GradientFlow(loss), **STATES),
    "rk4": lambda loss: odeopt.ODEOptimizer(odeopt.GradientFlow(loss), odeopt.RK4(), **STATES),
    "adaptive": lambda loss: odeopt.ODEOptimizer(
        odeopt.GradientFlow(loss), odeopt.Adaptive(), **STATES
    ),
    "stabilised": lambda loss: odeopt.ODEOptimizer(
        odeopt.GradientFlow(loss), odeopt.StabilizedRK(), **STATES
    ),
    "forward over reverse": lambda loss: odeopt.ODEOptimizer(
        odeopt.GradientFlow(loss),
        adjoint=odeopt.DiscreteAdjoint(odeopt.ForwardOverReverse()),
        **STATES,
    ),
    "momentum": lambda loss: odeopt.ODEOptimizer(odeopt.SGD(loss, momentum=0.9), **STATES),
    "adam": lambda loss: odeopt.ODEOptimizer(odeopt.Adam(loss), **STATES),
    "micro-batches": lambda loss: odeopt.ODEOptimizer(odeopt.SGD(loss, micro_batches=2)),
    "truncated": lambda loss: odeopt.ODEOptimizer(
        odeopt.Adam(loss), adjoint=odeopt.TruncatedAdjoint(4), **STATES
    ),
    "binomial": lambda loss: odeopt.ODEOptimizer(odeopt.Adam(loss), checkpoints=odeopt.Binomial(3)),
    "continuous": lambda loss: odeopt.ODEOptimizer(
        odeopt.GradientFlow(loss),
        odeopt.DormandPrince(),
        odeopt.ContinuousAdjoint(odeopt.ModifiedEuler()),
    ),
    "backsolve": lambda loss: odeopt.ODEOptimizer(
        odeopt.GradientFlow(loss), odeopt.RK4(), odeopt.BacksolveAdjoint()
    ),
    "implicit": lambda loss: odeopt.ODEOptimizer(
        odeopt.RegularizedFlow(loss, 1.0), adjoint=odeopt.ImplicitAdjoint(stationarity=None)
    ),
}
RULES = ("momentum", "adam", "micro-batches", "truncated", "binomial")


class Model(torch.nn.Module):
    """A perceptron with a number that no derivative knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)
        self.scale = 1.0

    def forward(self, x):
        return self.scale * torch.tanh(self.layer(x)).sum(-1)


class Problem:
    """A loss that uses a number, a tensor and a module beside its arguments."""

    def __init__(self, device) -> None:
        generator = torch.Generator().manual_seed(3)
        draw = lambda *shape: torch.randn(shape, generator=generator).to(device)  # noqa: E731
        self.number, self.tensor = 1.0, torch.ones((), device=device)
        self.model = Model().to(device)
        self.parts = odeopt.from_module(self.model, self.value)
        self.params = {name: draw(*p.shape) for name, p in self.parts.params.items()}
        self.batch = draw(8, 2), draw(8)
        self.grid = odeopt.TimeGrid.from_lr(0.05, 12)

    def value(self, model, batch):
        return (model(batch[0]) - batch[1]).square().mean() * self.number * self.tensor

    def change(self, what, by=1e-3):
        """Change something by a part of it."""
        if what == "number":
            self.number += by
        elif what == "tensor":
            self.tensor.add_(by)
        else:
            self.model.scale += by

    def outer(self, params, batch):
        return params["layer.weight"].square().sum()


def solved(name, problem, tasks=False, batch=None):
    params = {key: leaf.clone().requires_grad_() for key, leaf in problem.params.items()}
    batch = problem.batch if batch is None else batch
    if tasks and not isinstance(batch, odeopt.Stream):
        batch = tuple(torch.stack([leaf, leaf + 0.1]) for leaf in batch)
    opt = CHOICES[name](problem.parts.loss)
    return params, opt.solve(params, batch, problem.grid, tasks=tasks)


@pytest.mark.parametrize("tasks", [False, True])
@pytest.mark.parametrize("what", ["number", "tensor", "attribute"])
@pytest.mark.parametrize("name", CHOICES)
def test_a_change_of_what_the_loss_captures_is_noticed(name, what, tasks, device):
    problem = Problem(device)
    _, sol = solved(name, problem, tasks)
    problem.change(what)
    with pytest.raises(odeopt.NondeterminismError, match="has changed since"):
        sol.params["layer.weight"].sum().backward()


@pytest.mark.parametrize("name", CHOICES)
def test_a_change_that_is_undone_has_no_effect(name, device):
    problem = Problem(device)
    found = []
    for changes in (False, True):
        params, sol = solved(name, problem)
        if changes:
            problem.change("number")
            problem.change("number", -1e-3)
            problem.number = 1.0
        sol.params["layer.weight"].sum().backward()
        found.append([leaf.grad for leaf in params.values()])
    assert relative_error(found[1], found[0]) == 0


@pytest.mark.parametrize("name", RULES)
def test_a_change_of_the_data_behind_a_stream_is_noticed(name, device):
    problem = Problem(device)
    stream = odeopt.Stream.minibatches(problem.batch, batch_size=4, seed=0)
    _, sol = solved(name, problem, batch=stream)
    problem.batch[1].add_(1e-3)
    with pytest.raises(odeopt.NondeterminismError, match="has changed since"):
        sol.params["layer.weight"].sum().backward()


def test_a_change_for_one_task_alone_is_noticed(device):
    problem = Problem(device)
    batch = tuple(torch.stack([leaf, leaf + 0.1]) for leaf in problem.batch)

    def copied(k):
        return tuple(leaf.clone() for leaf in batch)

    _, sol = solved("adam", problem, tasks=True, batch=odeopt.Stream(copied))
    batch[1][1].add_(1e-3)
    with pytest.raises(odeopt.NondeterminismError, match="has changed since"):
        sol.params["layer.weight"].sum().backward()


def test_a_step_that_alone_changes_is_named(device):
    problem = Problem(device)
    batches = [(problem.batch[0], problem.batch[1] + k) for k in range(12)]
    _, sol = solved("adam", problem, batch=odeopt.Stream(lambda k: batches[k]))
    batches[7][1].add_(1e-3)
    with pytest.raises(odeopt.NondeterminismError, match="step 7 does not lead"):
        sol.params["layer.weight"].sum().backward()


def test_a_tiny_step_is_compared_with_how_far_it_goes(device):
    """Nothing of a step of 1e-12 is seen next to the parameters."""
    problem = Problem(device)
    problem.grid = odeopt.TimeGrid.from_lr(1e-10, 3)
    _, sol = solved("gradient descent", problem)
    problem.change("number", 0.1)
    with pytest.raises(odeopt.NondeterminismError, match="has changed since"):
        sol.params["layer.weight"].sum().backward()


def test_a_change_before_the_outer_loss_is_noticed_in_one_call(device):
    problem = Problem(device)
    opt = CHOICES["adam"](problem.parts.loss)

    def outer(params, batch):
        problem.change("number")
        return problem.outer(params, batch)

    with pytest.raises(odeopt.NondeterminismError, match="has changed since"):
        opt.value_and_grad(outer)(problem.params, problem.batch, problem.grid, ())


GRAPHS = {
    "gradient descent": lambda loss: odeopt.ODEOptimizer(odeopt.GradientFlow(loss)),
    "rk4": lambda loss: odeopt.ODEOptimizer(odeopt.GradientFlow(loss), odeopt.RK4()),
    "momentum": lambda loss: odeopt.ODEOptimizer(odeopt.SGD(loss, momentum=0.9)),
    "adam": lambda loss: odeopt.ODEOptimizer(odeopt.Adam(loss)),
    "truncated": lambda loss: odeopt.ODEOptimizer(
        odeopt.Adam(loss), adjoint=odeopt.TruncatedAdjoint(4)
    ),
}


@pytest.mark.parametrize("what", ["number", "tensor", "attribute", "batch"])
@pytest.mark.parametrize("name", GRAPHS)
def test_with_graphs_a_change_has_no_effect_or_is_noticed(name, what, device):
    found = []
    for changes in (False, True):
        problem = Problem(device)
        params = {key: leaf.clone().requires_grad_() for key, leaf in problem.params.items()}
        opt = GRAPHS[name](problem.parts.loss)
        sol = opt.solve(params, problem.batch, problem.grid)
        if changes:
            problem.batch[0].mul_(1.1) if what == "batch" else problem.change(what)
        noticed = ""
        try:
            sol.params["layer.weight"].sum().backward()
        except (
            odeopt.NondeterminismError,
            RuntimeError,
        ) as error:  # torch's, for what it has saved
            noticed = str(error)
        if noticed:
            assert changes
            assert what in ("tensor", "batch")
            assert "changed in place" in noticed or "by an inplace operation" in noticed
            return
        assert sol.stats.recorded_steps == (4 if name == "truncated" else 12)
        found.append([leaf.grad for leaf in params.values()])
    assert relative_error(found[1], found[0]) == 0


class Plugin(StepSolver):
    """Euler's method, whose pull says that it leads to `says(end)`."""

    order, stages, stability_limit = 1, 1, 2.0

    def __init__(self, says) -> None:
        self.says = says

    def step(self, velocity, t, dt, y):
        return y + dt * velocity(t, y)

    def pull(self, stepping, t, dt, y0, lam):
        found = super().pull(stepping, t, dt, y0, lam)
        return found._replace(end=self.says(found.end))


def of_plugin(says, problem, changes):
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(problem.parts.loss), Plugin(says))
    params = {key: leaf.clone().requires_grad_() for key, leaf in problem.params.items()}
    sol = opt.solve(params, problem.batch, problem.grid)
    if changes:
        problem.change("number")
    sol.params["layer.weight"].sum().backward()
    return params["layer.weight"].grad


@pytest.mark.parametrize("says", [lambda end: None, lambda end: reached(end.entries * (1 + 1e-5))])
def test_a_pull_that_leads_elsewhere_by_rounding_is_judged_by_the_solve_itself(says, device):
    """Compiled code may round otherwise, and some rules magnify that; so may a plugin."""
    expected = of_plugin(lambda end: end, Problem(device), changes=False)
    assert torch.equal(of_plugin(says, Problem(device), changes=False), expected)
    with pytest.raises(odeopt.NondeterminismError, match="has changed since"):
        of_plugin(says, Problem(device), changes=True)


def test_of_a_large_state_some_entries_are_compared(device):
    """Evenly spread, of each layer; a change that moves all of them is seen."""
    scale = {"now": 1.0}
    loss = lambda params, batch: scale["now"] * (params - batch).square().sum()  # noqa: E731
    params = torch.ones(200_001, device=device, requires_grad=True)
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), **STATES)
    for changes in (False, True):
        sol = opt.solve(params, torch.zeros((), device=device), odeopt.TimeGrid.from_lr(0.1, 2))
        scale["now"] += 1e-3 * changes
        if not changes:
            sol.params.sum().backward()
            continue
        with pytest.raises(odeopt.NondeterminismError, match="has changed since"):
            sol.params.sum().backward()
