"""Who takes part, odeopt, other packages and loops by hand, and at which sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vjp, vmap

import odeopt
from benchmarks.cost import peers
from benchmarks.harness.registry import Preset
from benchmarks.peers import problems
from benchmarks.peers.problems import FLOW, MAP, Contender, Network, Outcome, Problem, Runner, Setup
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch, each
from odeopt.adjoint.base import Adjoint
from odeopt.checkpoint.base import CheckpointSchedule
from odeopt.engine.compile import Compiled, record

Make = Callable[[Setup, float | None], Runner]
FASTEST = "the fastest backend"


def descent(
    checkpoints: Callable[[int], CheckpointSchedule] | None = None,
    compile: str | None = FASTEST,
) -> Make:
    """The exact gradient of gradient descent; its setting is the number of steps.

    Args:
        checkpoints: The schedule for a number of steps; every state without it.
        compile: How kernels are run.
    """

    def make(setup: Setup, setting: float | None) -> Runner:
        steps, lr = _steps(setup, setting)
        schedule = checkpoints(steps) if checkpoints else None
        grid = partial(odeopt.TimeGrid.from_lr, lr)
        return _ours(setup, steps, grid, compile, checkpoints=schedule)

    return make


def flow(adjoint: Adjoint, compile: str | None = FASTEST) -> Make:
    """The gradient of the flow by fixed steps of RK4; its setting is the number of steps."""

    def make(setup: Setup, setting: float | None) -> Runner:
        steps = setting or math.ceil(setup.t1 / setup.problem.flow_step(setup.t1) - 1e-9)
        steps = max(1, round(steps))
        part = setup.t1 / steps
        return _ours(
            setup, steps, lambda n: odeopt.TimeGrid.uniform(n * part, n), compile,
            solver=odeopt.RK4(), adjoint=adjoint,
        )  # fmt: skip

    return make


def stabilised(setup: Setup, setting: float | None) -> Runner:
    """The gradient of the flow by chosen steps; the setting is rtol."""
    rtol = setting or 3e-2
    solver, part = odeopt.StabilizedRK(rtol, rtol * 1e-2), setup.t1 / setup.steps
    return _ours(
        setup, setup.steps, lambda n: odeopt.TimeGrid.uniform(n * part, 1), FASTEST, solver=solver
    )


def fastest_backend(device: torch.device) -> str:
    """The backend that compiles the fastest kernels for a device."""
    return "inductor-cpu" if device.type == "cpu" else "inductor"


def binomial(steps: int) -> CheckpointSchedule:
    """About 2 sqrt(N) kept states, with which no step is replayed twice."""
    return odeopt.Binomial(max(2, 2 * math.isqrt(steps)))


def density(steps: int) -> CheckpointSchedule:
    """Intervals of about sqrt(N) steps."""
    return odeopt.Density(max(1, math.isqrt(steps)))


def _ours(
    setup: Setup, steps: int, grid: Callable[[int], odeopt.TimeGrid], compile: str | None,
    **choices: Any,
) -> Runner:  # fmt: skip
    backend = fastest_backend(setup.problem.device) if compile == FASTEST else compile
    return Runner(steps, by_odeopt(setup.problem, grid, compile=backend, **choices))


def by_odeopt(
    problem: Problem, grid: Callable[[int], odeopt.TimeGrid], **choices: Any
) -> Callable[[int], Outcome]:
    """The gradient of gradient flow with some choices, on the grid of a number of steps."""
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss), **choices)
    call = opt.value_and_grad(problem.loss, tasks=True)
    layout = problem.raveled()[1]

    def run(count: int) -> Outcome:
        result = call(problem.params, problem.tasks.train, grid(count), problem.tasks.validation)
        return Outcome(layout.flatten(result.grads.params, "gradient"), result.stats)

    return run


def unrolled_by(package: Callable[..., Any]) -> Make:
    """`higher.innerloop_ctx` or `torchopt.MetaSGD`, task by task; the setting is the steps."""

    def make(setup: Setup, setting: float | None) -> Runner:
        problem, (steps, lr) = setup.problem, _steps(setup, setting)
        network: nn.Module = Network(problem)
        loss: peers.NetworkLoss = Network.__call__
        if problem.name == "mlp":  # the perceptron as everybody builds it
            network, loss = peers.module(problem.params), peers.half_mean_square_of
        tasks = peers.trainings(problem.tasks)
        return Runner(steps, lambda n: Outcome(package(network, loss, tasks, n, lr=lr)()))

    return make


MOST_STEPS = 1000
"""Of torchdiffeq, besides twice as many as those of gradient descent."""


class _Flow(nn.Module):
    """The velocity of all tasks, [tasks, d], through which autograd can differentiate."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        layout = problem.raveled()[1]
        x, targets = problem.tasks.train

        def slope(y: Tensor, x: Tensor, targets: Tensor) -> Tensor:
            return grad(lambda u: problem.loss(layout.unflatten(u), Batch(x, targets)))(y)

        self._velocity = lambda y: -vmap(slope)(y, x, targets)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The velocity, which does not depend on time."""
        del t
        return self._velocity(y)


def torchdiffeq(setup: Setup, setting: float | None) -> Runner:
    """`odeint_adjoint` of Dormand-Prince, tasks stacked; the setting is rtol."""
    package: Any = import_module("torchdiffeq")
    problem, rtol = setup.problem, setting or 1e-3
    flow, part = _Flow(problem), setup.t1 / setup.steps
    flat, layout = problem.raveled()

    def outer(y: Tensor, x: Tensor, targets: Tensor) -> Tensor:
        return problem.loss(layout.unflatten(y), Batch(x, targets))

    def run(count: int) -> Outcome:
        start = flat.detach().requires_grad_()
        times = torch.tensor([0.0, count * part], dtype=start.dtype, device=start.device)
        limit = {"max_num_steps": MOST_STEPS + 2 * setup.steps}
        end = package.odeint_adjoint(
            flow, start.expand(problem.count, -1), times, rtol=rtol, atol=rtol * 1e-2,
            method="dopri5", options=dict(limit), adjoint_params=(),
            adjoint_options={"norm": "seminorm", **limit},
        )[-1]  # fmt: skip
        value = vmap(outer)(end, *problem.tasks.validation).mean()
        return Outcome(torch.autograd.grad(value, start)[0])

    return Runner(setup.steps, run)


def _steps(setup: Setup, setting: float | None) -> tuple[int, float]:
    steps = setup.steps if setting is None else round(setting)
    return steps, setup.t1 / steps


def unrolled(setup: Setup, setting: float | None) -> Runner:
    """`torch.autograd` through the loop, task by task."""
    problem, (steps, lr) = setup.problem, _steps(setup, setting)
    tasks = each(problem.tasks)

    def descend(y: Parameters, train: Batch, count: int) -> Parameters:
        for _ in range(count):
            slopes = torch.autograd.grad(
                problem.loss(y, train), list(y.values()), create_graph=True
            )
            y = {name: y[name] - lr * slope for name, slope in zip(y, slopes, strict=True)}
        return y

    def run(count: int) -> Outcome:
        total: Tensor | None = None
        for train, validation in tasks:
            start = {name: leaf.detach().requires_grad_() for name, leaf in problem.params.items()}
            value = problem.loss(descend(start, train, count), validation)
            grads = torch.autograd.grad(value / problem.count, list(start.values()))
            flat = torch.cat([leaf.flatten() for leaf in grads])
            total = flat if total is None else total + flat
        assert total is not None, "there is a task"
        return Outcome(total)

    return Runner(steps, run)


def vmap_unrolled(setup: Setup, setting: float | None) -> Runner:
    """`vmap(grad(...))` of the whole loop, on all tasks at once."""
    problem, (steps, lr) = setup.problem, _steps(setup, setting)
    layout = problem.raveled()[1]

    def run(count: int) -> Outcome:
        def after(params: Parameters, train: Any, validation: Any) -> Tensor:
            y = params
            for _ in range(count):
                slopes = grad(problem.loss)(y, train)
                y = {name: leaf - lr * slopes[name] for name, leaf in y.items()}
            return problem.loss(y, validation)

        each = vmap(grad(after), in_dims=(None, 0, 0))(problem.params, *problem.tasks)
        mean = {name: leaf.mean(0) for name, leaf in each.items()}
        return Outcome(layout.flatten(mean, "gradient"))

    return Runner(steps, run)


@dataclass(frozen=True)
class _Loop:
    """Gradient descent on all tasks at once, and the adjoint recursion, by three functions."""

    start: Tensor  # of all tasks, [tasks, d]
    train: Batch  # of all tasks
    lr: Tensor
    step: Callable[..., Sequence[Tensor]]  # of the rate, states and batches
    pull: Callable[..., Sequence[Tensor]]  # of the rate, states, their adjoints and batches
    # `end(steps, states)` is the gradient of the validation loss after so many steps
    end: Callable[[int, Tensor], Tensor]

    @torch.no_grad()
    def run(self, count: int) -> Outcome:
        """So many steps, whose states are kept in a list, and their pullbacks."""
        lr, train, step, pull, kept = self.lr, self.train, self.step, self.pull, [self.start]
        for _ in range(count):
            kept.append(step(lr, kept[-1], *train)[0])
        lam = self.end(count, kept.pop())
        while kept:
            lam, _ = pull(lr, kept.pop(), lam, *train)
        return Outcome(lam.sum(0))


def _loop(problem: Problem, lr: float) -> _Loop:
    """With functions that are vmapped over tasks."""
    flat, layout = problem.raveled()
    start = flat.expand(problem.count, -1).contiguous()

    def slope(y: Tensor, x: Tensor, targets: Tensor) -> Tensor:
        return grad(lambda u: problem.loss(layout.unflatten(u), Batch(x, targets)))(y)

    def step(dt: Tensor, y: Tensor, x: Tensor, targets: Tensor) -> tuple[Tensor]:
        return (y - dt * slope(y, x, targets),)

    def pull(
        dt: Tensor, y: Tensor, lam: Tensor, x: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        value, pullback = vjp(lambda u: slope(u, x, targets), y)[:2]
        return lam - dt * pullback(lam)[0], -(lam * value).sum()

    def end(_: int, y: Tensor) -> Tensor:
        return vmap(slope)(y, *problem.tasks.validation) / problem.count

    return _Loop(
        start, problem.tasks.train, torch.tensor(lr, dtype=start.dtype, device=problem.device),
        vmap(step, in_dims=(None, 0, 0, 0)), vmap(pull, in_dims=(None, 0, 0, 0, 0)), end,
    )  # fmt: skip


def vmap_adjoint(setup: Setup, setting: float | None) -> Runner:
    """States kept in a list, then the adjoint recursion; each vmapped over tasks."""
    steps, lr = _steps(setup, setting)
    return Runner(steps, _loop(setup.problem, lr).run)


def kernels(setup: Setup, setting: float | None) -> Runner:
    """The compiled step N times and its compiled transpose N times on real states, no more.

    The gradient of the validation loss, with which the way back begins, is computed once for
    each number of steps and kept.
    """
    steps, lr = _steps(setup, setting)
    loop = _loop(setup.problem, lr)
    inputs, ends = [loop.lr, loop.start, *loop.train], dict[int, Tensor]()
    step = compiled(loop.step, inputs)
    pull = compiled(loop.pull, [*inputs[:2], torch.ones_like(loop.start), *loop.train])

    def end(count: int, y: Tensor) -> Tensor:
        if count not in ends:
            ends[count] = loop.end(count, y)
        return ends[count]

    return Runner(steps, replace(loop, step=step, pull=pull, end=end).run)


def compiled(function: Callable[..., Sequence[Tensor]], inputs: list[Tensor]) -> Compiled:
    """A function of tensors, traced and compiled as odeopt's kernels are.

    Raises:
        RuntimeError: It gives other numbers than the function does.
    """

    def listed(*tensors: Tensor) -> list[Tensor]:
        return list(function(*tensors))

    example = [leaf.clone() for leaf in inputs]  # tracing merges tensors that are the same
    backend = odeopt.BACKENDS.get(fastest_backend(inputs[0].device))()
    run = backend.compile(record(listed, example), example)
    for want, got in zip(function(*inputs), run(*inputs), strict=True):
        gap = (want - got).abs().max() / want.abs().max()
        if gap > torch.finfo(want.dtype).eps ** 0.6:
            raise RuntimeError(f"the compiled kernel is off by {gap.item():.1e}")
    return run


OURS, PLAIN, EAGER = "odeopt", "odeopt plain", "odeopt eager"
BINOMIAL, DENSITY = "odeopt binomial", "odeopt density"
RK4, HERMITE, STABILISED = "odeopt rk4", "odeopt hermite", "odeopt stabilised"
HIGHER, TORCHOPT, TORCHDIFFEQ = "higher", "torchopt", "torchdiffeq"
UNROLLED, VMAP_ADJOINT, VMAP_UNROLLED = "unrolled", "vmap adjoint", "vmap unrolled"
KERNELS = "kernels"

_STEPS, _RTOL = "steps", "rtol"


_ALL = (
    Contender(OURS, "odeopt, every state", MAP, descent(), _STEPS),
    Contender(PLAIN, "odeopt, plain Inductor", MAP, descent(compile="inductor"), _STEPS),
    Contender(EAGER, "odeopt, not compiled", MAP, descent(compile=None), _STEPS),
    Contender(BINOMIAL, "odeopt, Binomial", MAP, descent(binomial), _STEPS),
    Contender(DENSITY, "odeopt, Density", MAP, descent(density), _STEPS),
    Contender(RK4, "odeopt, RK4", FLOW, flow(odeopt.DiscreteAdjoint()), _STEPS),
    Contender(
        HERMITE, "odeopt, RK4 + Hermite", FLOW, flow(odeopt.ContinuousAdjoint(odeopt.RK4())), _STEPS
    ),
    Contender(STABILISED, "odeopt, StabilizedRK", FLOW, stabilised, _RTOL),
    Contender(HIGHER, "higher", MAP, unrolled_by(peers.by_higher), _STEPS, "higher"),
    Contender(TORCHOPT, "TorchOpt", MAP, unrolled_by(peers.by_torchopt), _STEPS, "torchopt"),
    Contender(
        TORCHDIFFEQ, "torchdiffeq, odeint_adjoint", FLOW, torchdiffeq, _RTOL, "torchdiffeq"
    ),
    Contender(UNROLLED, "unrolled autograd", MAP, unrolled, _STEPS),
    Contender(VMAP_UNROLLED, "vmap(grad(loop))", MAP, vmap_unrolled, _STEPS),
    Contender(VMAP_ADJOINT, "vmapped adjoint loop", MAP, vmap_adjoint, _STEPS),
    Contender(KERNELS, "bare compiled kernels", MAP, kernels, _STEPS),
)  # fmt: skip

CONTENDERS = {contender.name: contender for contender in _ALL}
"""By name, in the order of tables."""

PEERS = (HIGHER, TORCHOPT, TORCHDIFFEQ, UNROLLED, VMAP_UNROLLED, VMAP_ADJOINT)
"""Those that are not odeopt's, the bare kernels not counted."""

ALL = tuple(CONTENDERS)
FEW = (OURS, PLAIN, DENSITY, RK4, *PEERS, KERNELS)
SHORT = tuple(name for name in (EAGER, *FEW) if name not in (DENSITY, RK4))
"""Without what takes longest to compile."""

UNCOMPILED = (EAGER, HIGHER, TORCHOPT, UNROLLED, VMAP_ADJOINT)
EXACT = (OURS, PLAIN, BINOMIAL, DENSITY, HIGHER, TORCHOPT, KERNELS)


@dataclass(frozen=True)
class Limits:
    """Of the processes of one point."""

    rounds: int  # timed runs of each contender, in turn
    seconds: float  # time that the timed runs of a contender may take together, about
    start: float  # time that one answer may take, with what it takes to load and to compile
    memory_gib: float  # memory beyond what is in use after the warm-up


@dataclass(frozen=True)
class Point:
    """One table: a problem, a horizon and who takes part."""

    problem: str  # a key of `problems.PROBLEMS`
    steps: int  # of gradient descent
    tasks: int  # how many
    contenders: tuple[str, ...] = ALL  # keys of `CONTENDERS`
    dtype: str = "float32"  # "float32" or "float64"

    @property
    def key(self) -> str:
        """The key of its cell."""
        return f"{self.problem} {self.dtype} steps={self.steps} tasks={self.tasks}"

    def setup(self, device: torch.device, dtype: torch.dtype | None = None) -> Setup:
        """The problem and its horizon, in another dtype if one is given."""
        problem = problems.make(self.problem, self.tasks)
        problem = problem.to(device, dtype or getattr(torch, self.dtype))
        return Setup(problem, self.steps * problem.lr, self.steps)


@dataclass(frozen=True)
class Stiff:
    """A long horizon."""

    t1: float  # it
    tolerances: tuple[float, ...]  # of the stabilised solver


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run."""

    points: tuple[Point, ...]  # with a process per contender
    overhead: tuple[int, ...]  # numbers of steps at which odeopt is compared with the bare kernels
    # entries (contender, setting) of the work-precision diagram
    precision: tuple[tuple[str, float], ...]
    precision_steps: int  # steps of gradient descent at its horizon
    stiff: tuple[Stiff, ...]  # long horizons
    limits: Limits  # of the processes
    paired_rounds: int  # rounds of what is measured in one process


def _precision(
    descent: tuple[int, ...], rk4: tuple[int, ...], stabilised: tuple[float, ...],
    torchdiffeq: tuple[float, ...],
) -> tuple[tuple[str, float], ...]:  # fmt: skip
    return (
        *((OURS, steps) for steps in descent),
        *((name, descent[len(descent) // 2]) for name in (HIGHER, UNROLLED)),
        *((name, steps) for name in (RK4, HERMITE) for steps in rk4),
        *((STABILISED, rtol) for rtol in stabilised),
        *((TORCHDIFFEQ, rtol) for rtol in torchdiffeq),
    )


TOLERANCES = (0.1, 5e-2, 3e-2, 2e-2, 1e-2, 7e-3, 5e-3, 3e-3, 2e-3, 1e-3)

SIZES = {
    Preset.SMOKE: Sizes(
        (Point("mlp", 3, 2, (EAGER, HIGHER, UNROLLED)),), (), (), 5, (),
        Limits(1, 10.0, 60.0, 8.0), 1,
    ),
    Preset.QUICK: Sizes(
        (
            Point("mlp", 500, 5, (OURS, PLAIN, BINOMIAL, RK4, HIGHER, TORCHOPT,
                                  UNROLLED, VMAP_ADJOINT, TORCHDIFFEQ, KERNELS)),
            Point("mlp", 50, 5, (OURS, HIGHER, UNROLLED, VMAP_ADJOINT)),
            Point("conv", 3, 1, UNCOMPILED),
            Point("transformer", 10, 2, UNCOMPILED),
        ),
        (500,), (), 500, (), Limits(3, 20.0, 120.0, 8.0), 5,
    ),
    Preset.PAPER: Sizes(
        (
            *(Point("mlp", steps, 5) for steps in (10, 100, 500, 2000)),
            Point("mlp", 500, 5, EXACT, "float64"),
            *(Point("mlp", 100, tasks, FEW) for tasks in (1, 16, 64)),
            Point("conv", 10, 1, (*SHORT, RK4)), Point("conv", 30, 1, SHORT),
            Point("conv", 10, 4, SHORT),
            Point("transformer", 10, 1, (*SHORT, RK4)), Point("transformer", 100, 1, SHORT),
            Point("transformer", 10, 4, SHORT),
        ),
        (500, 2000),
        _precision((125, 250, 500, 1000, 2000), (8, 10, 12, 16, 24, 32, 64),
                   (0.1, 1e-2, 1e-3, 1e-4), (1e-1, 1e-2, 1e-3, 1e-4)),
        500, (Stiff(320.0, TOLERANCES), Stiff(1000.0, TOLERANCES)),
        Limits(5, 40.0, 600.0, 8.0), 9,
    ),
}  # fmt: skip
