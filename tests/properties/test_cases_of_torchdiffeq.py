"""What odeopt does with the cases of torchdiffeq's tests: states, times, methods, events."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from support.peers import RIGHT, Refused, Right, check
from torch import nn
from torchdiffeq import odeint, odeint_adjoint

import odeopt
from odeopt import ODEOptimizer, TimeGrid
from odeopt.testing import relative_error

CONTINUOUS = odeopt.ContinuousAdjoint(odeopt.ModifiedEuler())


def decay(t, y, consts, hparams, batch):
    return -0.5 * y


def drift(t, y, consts, hparams, batch):
    """Its solution from b is a t + b."""
    return 0.2 + (y - (0.2 * t + 3.0)) ** 5


def forced(t, y, consts, hparams, batch):
    return 2 * y / t + t**4 * torch.sin(2 * t) - t**2 + 4 * t**3


def forced_solution(t):
    return (
        -(t**4) * math.cos(2 * t) / 2 + t**3 * math.sin(2 * t) / 2 + t**2 * math.cos(2 * t) / 4
        - t**3 + 2 * t**4 + (math.pi - 0.25) * t**2
    )  # fmt: skip


def damped(t, y, consts, hparams, batch):
    return torch.cos(t) - y**3


def rotation(device):
    """A skew-symmetric matrix."""
    upper = 0.1 * torch.randn(10, 10, generator=torch.Generator().manual_seed(0)).to(device)
    return upper - upper.T


def jumping(t, y, *rest):
    return -0.5 * y if t < 0.5 else y**2


def solve(velocity, y0, times, solver=None, hparams=None, **choices):
    grid = times if isinstance(times, TimeGrid) else TimeGrid(times)
    opt = ODEOptimizer(velocity, solver or odeopt.RK4(), **choices)
    return opt.solve(y0, None, grid, hparams)


def ones(device, *shape):
    return torch.ones(shape or (2,), device=device)


def by_method(method, options=None):
    """Three problems by a method of torchdiffeq, beside torchdiffeq itself."""

    def case(device):
        matrix = rotation(device)
        problems = [
            (decay, ones(device)), (drift, 3 * ones(device)),
            (lambda t, y, *rest: matrix @ y, ones(device, 10)),
        ]  # fmt: skip
        for velocity, y0 in problems:
            solver = odeopt.Torchdiffeq(method, 1e-5, 1e-7, options)
            times = torch.linspace(0.0, 1.0, 5)
            end = solve(velocity, y0, times, solver, adjoint=CONTINUOUS).params
            by_peer = odeint(
                lambda t, y, f=velocity: f(t, y, (), None, None), y0, times.to(device),
                rtol=1e-5, atol=1e-7, method=method, options=options,
            )  # fmt: skip
            yield end, by_peer[-1]

    return case


NO_METHOD = Refused(odeopt.InputError, "method is .*expected one of dopri8, dopri5")
METHODS = {
    **dict.fromkeys(("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"), RIGHT),
    **dict.fromkeys(("euler", "midpoint", "heun2", "heun3", "rk4"), RIGHT),
    **dict.fromkeys(("explicit_adams", "implicit_adams"), RIGHT),
    **dict.fromkeys(("tsit5", "scipy_solver", "implicit_euler", "implicit_midpoint"), NO_METHOD),
    **dict.fromkeys(("trapezoid", "gl4", "radauIIA5", "sdirk2", "trbdf2"), NO_METHOD),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods(name, device):
    check(by_method(name), METHODS[name], device)


SOLVERS = {
    "euler": (odeopt.Euler(), 2e-2), "midpoint": (odeopt.Midpoint(), 1e-4),
    "heun": (odeopt.ModifiedEuler(), 1e-4), "rk4": (odeopt.RK4(), 1e-8),
    "adaptive": (odeopt.Adaptive(1e-9, 1e-11), 1e-7),
}  # fmt: skip


@pytest.mark.parametrize("name", SOLVERS)
def test_our_own_solvers(name, device):
    solver, tolerance = SOLVERS[name]
    times = torch.linspace(1.0, 2.0, 201)
    end = solve(forced, forced_solution(1.0) * ones(device), times, solver).params
    assert relative_error(end, forced_solution(2.0) * ones(device)) < tolerance
    matrix = rotation(device)
    end = solve(lambda t, y, *rest: matrix @ y, ones(device, 10), times, solver).params
    assert relative_error(end, torch.linalg.matrix_exp(matrix) @ ones(device, 10)) < tolerance


class Dynamics(nn.Module):
    """A velocity with parameters, one part of which it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[-0.1, 2.0], [-2.0, -0.1]]))
        self.unused = nn.Linear(2, 5)

    def forward(self, t, y):
        return (y**3) @ self.matrix * torch.cos(t)


def with_gradients(solver, method, adjoint=None, integrate=odeint):
    """States at all times, and gradients w.r.t. the state, the times and the parameters."""

    def case(device):
        torch.manual_seed(0)
        dynamics = Dynamics().to(device)
        y0 = torch.tensor([0.8, 0.3], device=device, requires_grad=True)
        times = torch.linspace(0.0, 1.0, 11).to(device).requires_grad_()
        weights = torch.randn(11, 2, generator=torch.Generator().manual_seed(1)).to(device)
        inputs = [y0, times, *dynamics.parameters()]
        states = integrate(dynamics, y0, times, rtol=1e-10, atol=1e-12, method=method)
        expected = torch.autograd.grad((weights * states).sum(), inputs, allow_unused=True)

        def velocity(t, y, consts, hparams, batch):
            return torch.func.functional_call(dynamics, hparams, (t, y))

        grid = TimeGrid(times, observe=range(11))
        opt = ODEOptimizer(velocity, solver, adjoint=adjoint)
        found = opt.solve(y0, None, grid, dict(dynamics.named_parameters()))
        seen = torch.stack(found.observed)
        yield seen.detach(), states.detach()
        gradients = torch.autograd.grad((weights * seen).sum(), inputs)
        yield list(gradients), [torch.zeros_like(x) if g is None else g
                                for x, g in zip(inputs, expected, strict=True)]  # fmt: skip

    return case


GRADIENTS = {
    "euler": (with_gradients(odeopt.Euler(), "euler"), RIGHT),
    "midpoint": (with_gradients(odeopt.Midpoint(), "midpoint"), RIGHT),
    "adaptive": (with_gradients(odeopt.Adaptive(1e-10, 1e-12), "dopri5"), Right(1e-7)),
    "adjoint": (
        with_gradients(odeopt.Adaptive(1e-10, 1e-12), "dopri5", None, odeint_adjoint),
        Right(1e-7),
    ),
    "integrated backward": (
        with_gradients(odeopt.RK4(), "dopri5", odeopt.BacksolveAdjoint(), odeint_adjoint),
        Right(3e-4),
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name, device):
    check(*GRADIENTS[name], device)


def tuple_state(device):
    start = torch.tensor(2.0, device=device), ones(device, 2, 2)
    end = solve(lambda t, y, *rest: (-y[0], -2 * y[1]), start, torch.linspace(0, 1, 101)).params
    yield list(end), [2 * math.exp(-1) * start[0] / 2, math.exp(-2) * start[1]]


def scalar_state(device):
    end = solve(decay, torch.tensor(3.0, device=device), torch.linspace(0, 1, 101)).params
    yield end, torch.tensor(3 * math.exp(-0.5), device=device)


def backward_in_time(device):
    """By t -> -t, since times must not decrease."""
    times, y1 = torch.linspace(0, 1, 101), torch.tensor(math.exp(-0.5), device=device)
    yield solve(lambda s, y, *rest: -decay(-s, y, *rest), y1, times).params, y1.new_ones(())


def repeated_times(device):
    """A flow stands still over an interval of no length."""
    found = []
    for times in ([0.0, 0.5, 1.0], [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]):
        y0 = ones(device).requires_grad_()
        end = solve(damped, y0, torch.tensor(times)).params
        found.append([end.detach(), *torch.autograd.grad(end.sum(), y0)])
    yield found[1], found[0]


def one_time(device):
    for solver, adjoint in [(None, None), (odeopt.DormandPrince(), CONTINUOUS)]:
        y0 = ones(device).requires_grad_()
        end = solve(decay, y0, torch.tensor([0.0]), solver, adjoint=adjoint).params
        yield end.detach(), ones(device)
        yield torch.autograd.grad(end.sum(), y0)[0], ones(device)


def times_of(values):
    return lambda device: [
        (solve(decay, ones(device), values, odeopt.Euler()).params, 0.25 * ones(device))
    ]


def single_precision(device):
    end = solve(decay, ones(device).float(), torch.linspace(0, 1, 101)).params
    assert end.dtype is torch.float32
    yield end.to(torch.float64), math.exp(-0.5) * ones(device)


def beginning_with(state, velocity=decay):
    return lambda device: solve(velocity, state(device), torch.linspace(0, 1, 5)) and ()


def moved_by(velocity, solver=None, t1=1.0, **choices):
    times = torch.linspace(0.0, t1, 11)
    return lambda device: solve(velocity, ones(device), times, solver, **choices) and ()


def jump_on_the_grid(device):
    """The velocity jumps at a time of the grid, and only where Euler's step begins."""
    times = torch.linspace(0, 1, 5)
    y0, other = (ones(device).requires_grad_() for _ in "ab")
    end = solve(jumping, y0, times, odeopt.Euler()).params
    by_peer = odeint(jumping, other, times.to(device), method="euler")[-1]
    yield end.detach(), by_peer.detach()
    yield torch.autograd.grad(end.sum(), y0), torch.autograd.grad(by_peer.sum(), other)


def jump_told_to_the_solver(device):
    options = {"jump_t": torch.tensor([0.5], device=device)}
    solver = odeopt.Torchdiffeq("dopri5", 1e-8, 1e-9, options)
    end = solve(jumping, ones(device), torch.tensor([0.0, 1.0]), solver, adjoint=CONTINUOUS).params
    yield end, ones(device) / (math.exp(0.25) - 0.5)


def jump_with_tasks(device):
    opt = ODEOptimizer(lambda t, y, c, h, batch: batch * y if t < 0.5 else y**2, odeopt.Euler())
    opt.solve(ones(device), ones(device, 5), TimeGrid.uniform(1.0, 4), tasks=True)


def several_at_once(device):
    rates, times = torch.tensor([0.1, 0.5], device=device), torch.linspace(0, 1, 5)
    opt = ODEOptimizer(lambda t, y, c, h, rate: -rate * y**2, odeopt.RK4())
    together = opt.solve(ones(device), rates, TimeGrid(times), tasks=True).params
    alone = [opt.solve(ones(device), rate, TimeGrid(times)).params for rate in rates]
    yield together, torch.stack(alone)


def captured_parameters(device):
    dynamics = Dynamics().to(device)
    solve(lambda t, y, *rest: dynamics(t, y), ones(device), torch.linspace(0, 1, 5))


def with_options(method, **options):
    return by_method(method, options)


def stopping(velocity, start, threshold, t1, solver=None):
    """A state with its time beside it, stopped where the state comes down to a threshold."""

    def augmented(t, y, *rest):
        return {"y": velocity(t, y["y"]), "t": torch.ones_like(y["t"])}

    def run(device):
        y0 = {"y": torch.tensor(start, device=device), "t": torch.zeros((), device=device)}
        stop = odeopt.StopWhen(lambda params, batch: params["y"] - threshold, batch=())
        call = ODEOptimizer(augmented, solver or odeopt.RK4()).value_and_grad(
            lambda params, batch: params["t"], stop=stop
        )
        return call(y0, None, TimeGrid.uniform(t1, 50), None)

    return run


def event_of_a_line(device):
    """y = 2 - t / 2 comes down to 1 at t = 2, which depends on where it begins by a factor of 2."""
    res = stopping(lambda t, y: -0.5 + 0 * y, 2.0, 1.0, 3.0)(device)
    yield res.value, torch.tensor(2.0, device=device)
    yield res.grads.params["y"], torch.tensor(2.0, device=device)


def event_of_a_wave(device):
    """y = cos t, which comes down to 1/2 at t = pi / 3; y0 cos t shifts it by 1 / tan t."""
    res = stopping(lambda t, y: -y * torch.tan(t), 1.0, 0.5, 1.4)(device)
    yield res.value, torch.tensor(math.pi / 3, device=device)
    expected = 1 / math.tan(math.pi / 3)
    yield res.grads.params["y"], torch.tensor(expected, device=device)


def event_that_never_comes(device):
    res = stopping(lambda t, y: -0.5 + 0 * y, 2.0, -9.0, 3.0)(device)
    yield res.value, torch.tensor(3.0, device=device)


def gradient_inside(device):
    """A velocity that is a derivative itself."""
    found = solve(
        lambda t, y, *rest: -torch.func.grad(lambda u: u.square().sum() / 4)(y),
        ones(device), torch.linspace(0, 1, 11),
    ).params  # fmt: skip
    yield found, solve(decay, ones(device), torch.linspace(0, 1, 11)).params


def by_autograd(t, y, *rest):
    y = y.clone().requires_grad_()
    return -torch.autograd.grad(y.square().sum() / 4, y, create_graph=True)[0]


def of_an_untracked(t, y, *rest):
    return -torch.autograd.grad(y.square().sum() / 4, y, create_graph=True)[0]


def numpy_inside(device):
    opt = ODEOptimizer(
        lambda t, y, *rest: torch.tensor(-y.detach().cpu().numpy()).to(y), odeopt.RK4()
    )
    call = opt.value_and_grad(lambda params, batch: params.sum())
    call(ones(device), None, TimeGrid.uniform(1.0, 4), None)


def with_callbacks(device):
    def velocity(t, y, *rest):
        return -y

    velocity.callback_step = lambda t, y, dt: None
    ODEOptimizer(velocity)


def twice_through_one_graph(device):
    y0 = ones(device).requires_grad_()
    end = solve(damped, y0, torch.linspace(0, 1, 5)).params.sum()
    first, second = (torch.autograd.grad(end, y0, retain_graph=True) for _ in "ab")
    yield first, second


def second_derivative(device):
    y0 = ones(device).requires_grad_()
    end = solve(damped, y0, torch.linspace(0, 1, 5)).params.sum()
    torch.autograd.grad(end, y0, create_graph=True)[0].sum().backward()


def copies(device):
    """An optimiser is copied, a grid pickled."""
    opt = ODEOptimizer(damped, odeopt.RK4())
    grid = TimeGrid(torch.linspace(0, 1, 5))
    found = copy.deepcopy(opt).solve(ones(device), None, pickle.loads(pickle.dumps(grid)))
    yield found.params, opt.solve(ones(device), None, grid).params


SPIKE = lambda t, y, *rest: y**3  # noqa: E731
OTHER_STRUCTURE = Refused(odeopt.InputError, "the velocity has the (structure|dtype)")
SITUATIONS = {
    "tuple of states": (tuple_state, Right(1e-8)),
    "scalar state": (scalar_state, Right(1e-8)),
    "no state": (beginning_with(lambda device: ()), Refused(odeopt.InputError, "holds no tensor")),
    "state that is a number": (
        beginning_with(lambda device: 1.0), Refused(odeopt.InputError, "is a float"),
    ),
    "integer state": (
        beginning_with(lambda device: ones(device).long()), Refused(odeopt.InputError, "int64"),
    ),
    "complex state": (
        beginning_with(lambda device: ones(device) + 0j), Refused(odeopt.InputError, "complex128"),
    ),
    "single precision": (single_precision, Right(1e-6)),
    "states of two dtypes": (
        beginning_with(lambda device: (ones(device), ones(device).float())),
        Refused(odeopt.InputError, "use one dtype"),
    ),
    "state on the meta device": (
        beginning_with(lambda device: torch.ones(2, device="meta")),
        Refused(odeopt.InputError, "on the meta device"),
    ),
    "decreasing times": (
        times_of(torch.tensor([2.0, 1.0, 0.0])), Refused(odeopt.InputError, "must not decrease"),
    ),
    "backward in time": (backward_in_time, Right(1e-9)),
    "repeated times": (repeated_times, Right(1e-13)),
    "one time": (one_time, Right(1e-15)),
    "no time": (times_of(torch.tensor([])), Refused(odeopt.InputError, "shape \\(0,\\)")),
    "integer times": (times_of(torch.tensor([0, 1, 2])), Right(1e-15)),
    "list of times": (times_of([0, 1, 2]), Right(1e-15)),
    "times that are not finite": (
        times_of([0, math.nan, 2]), Refused(odeopt.InputError, "expected finite steps"),
    ),
    "function of t and y": (
        moved_by(lambda t, y: -y), Refused(odeopt.InputError, "lambda t, y, consts, hparams"),
    ),
    "module of t and y": (
        moved_by(Dynamics()), Refused(odeopt.InputError, "lambda t, y, consts, hparams"),
    ),
    "captured parameters": (
        captured_parameters, Refused(odeopt.CapturedTensorError, "Pass it in hparams"),
    ),
    "list returned for a tuple": (
        beginning_with(lambda device: (ones(device),), lambda t, y, *rest: [y[0]]), OTHER_STRUCTURE,
    ),
    "sum returned": (moved_by(lambda t, y, *rest: y.sum()), OTHER_STRUCTURE),
    "other dtype returned": (moved_by(lambda t, y, *rest: y.float()), OTHER_STRUCTURE),
    "nothing returned": (moved_by(lambda t, y, *rest: None), OTHER_STRUCTURE),
    "NaN returned": (
        moved_by(lambda t, y, *rest: y * math.nan), Refused(odeopt.DivergenceError, "after step 0"),
    ),
    "state changed in place": (
        moved_by(lambda t, y, *rest: y.neg_()), Refused(odeopt.InputError, "in place"),
    ),
    "random velocity": (
        moved_by(lambda t, y, *rest: torch.randn_like(y)),
        Refused(odeopt.NondeterminismError, "drew random numbers"),
    ),
    "blow-up": (moved_by(SPIKE, t1=9.0), Refused(odeopt.DivergenceError, "not finite after step")),
    "blow-up, adaptive": (
        moved_by(SPIKE, odeopt.Adaptive(1e-6, 1e-6), 9.0),
        Refused(odeopt.OdeoptError, "not finite|attempts"),
    ),
    "blow-up in torchdiffeq": (
        moved_by(SPIKE, odeopt.DormandPrince(), 9.0, adjoint=CONTINUOUS),
        Refused(odeopt.DivergenceError, "gave up"),
    ),
    "too many steps": (
        moved_by(decay, odeopt.Torchdiffeq("dopri5", options={"max_num_steps": 1}), 99.0,
                 adjoint=CONTINUOUS),
        Refused(odeopt.DivergenceError, "max_num_steps exceeded"),
    ),
    "jump on the grid": (jump_on_the_grid, Right(1e-13)),
    "jump told to the solver": (jump_told_to_the_solver, Right(1e-6)),
    "jump with tasks": (jump_with_tasks, Refused(odeopt.CompatibilityError, r"torch\.where")),
    "several at once": (several_at_once, Right(1e-13)),
    "option: norm": (with_options("dopri5", norm=lambda x: x.abs().max()), RIGHT),
    "option: first_step": (with_options("bosh3", first_step=0.01), RIGHT),
    "option: max_step": (with_options("dopri5", max_step=0.05), RIGHT),
    "option: min_step": (with_options("dopri5", min_step=0.5), RIGHT),
    "option: step_size": (with_options("rk4", step_size=0.05), RIGHT),
    "option: perturb": (with_options("midpoint", step_size=0.1, perturb=True), RIGHT),
    "option: grid_constructor": (
        with_options("euler", grid_constructor=lambda f, y0, t: torch.linspace(t[0], t[-1], 11)),
        RIGHT,
    ),
    "option of another method": (
        with_options("rk4", max_step=0.1), Refused(odeopt.UnknownKeywordError, "max_step"),
    ),
    "options of torchdiffeq's adjoint": (
        lambda device: odeopt.Torchdiffeq("dopri5", adjoint_options={"norm": "seminorm"}),
        Refused(odeopt.UnknownKeywordError, "adjoint_options"),
    ),
    "negative tolerance": (
        lambda device: odeopt.DormandPrince(rtol=-1.0), Refused(odeopt.InputError, "rtol is -1"),
    ),
    "exact adjoint of torchdiffeq": (
        moved_by(decay, odeopt.DormandPrince()),
        Refused(odeopt.CompatibilityError, "cannot replay DormandPrince"),
    ),
    "callbacks": (with_callbacks, Refused(odeopt.CompatibilityError, "callback_step")),
    "event of a line": (event_of_a_line, Right(1e-9)),
    "event of a wave": (event_of_a_wave, Right(1e-6)),
    "event that never comes": (event_that_never_comes, Right(1e-12)),
    "event of an adaptive solve": (
        stopping(lambda t, y: -y, 2.0, 1.0, 3.0, odeopt.Adaptive(1e-6, 1e-6)),
        Refused(odeopt.CompatibilityError, "chooses its own steps"),
    ),
    "gradient inside": (gradient_inside, Right(1e-14)),
    "gradient inside by autograd": (
        moved_by(by_autograd), Refused(odeopt.CapturedTensorError, r"torch\.func\.grad"),
    ),
    "gradient inside of what is not tracked": (
        moved_by(of_an_untracked), Refused(odeopt.CompatibilityError, r"torch\.func\.grad"),
    ),
    "numpy inside": (numpy_inside, Refused(odeopt.CompatibilityError, r"numpy\(\)")),
    "twice through one graph": (twice_through_one_graph, Right(1e-15)),
    "second derivative": (
        second_derivative, Refused(odeopt.SecondOrderError, "second derivative"),
    ),
    "copies": (copies, Right(1e-15)),
}  # fmt: skip


@pytest.mark.parametrize("name", SITUATIONS)
def test_situations(name, device):
    check(*SITUATIONS[name], device)
