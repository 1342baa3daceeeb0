"""The quality of meta-gradients: one method on one problem at one horizon.

Each is compared with a target, in float64: the meta-gradient, w.r.t. the initialisation, that the
method would return if it made no approximation to what it stands for. Truncated MAML, FOMAML and
Reptile stand for the exact gradient of gradient descent with their number of steps; MAML-1 for that
of its one step; A-MAML for the flow's; A-MAML as released for that of the flow of its regularised
problem; iMAML for that of the minimiser of its regularised problem; the others for their own
gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, hessian

import odeopt
from benchmarks import methods
from benchmarks.comparison import cosine, of_order_four
from benchmarks.cost.lines import LINES, LR, Line, method_of
from benchmarks.harness import costs, markdown, outline, plots
from benchmarks.harness.outline import Cell, Cells
from benchmarks.harness.registry import Preset, Settings
from benchmarks.problems import classification, functions, models
from benchmarks.problems.models import Parameters, Problem
from benchmarks.problems.tasks import Task, each, move
from odeopt.testing import relative_error
from odeopt.tools.tree import flat, ravel


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run."""

    problems: tuple[str, ...]  # names in `TITLES`
    horizons: tuple[float, ...]  # T; gradient descent takes T / LR steps
    tasks: int  # of the meta-gradient
    shots: int  # training points of regression, as many for validation; of digits 10
    rate: int  # RK4 steps of the reference per unit of time
    repeats: int  # timed runs of a method

    def reference_steps(self, t1: float) -> int:
        """RK4 steps up to t1, an even number."""
        return max(16, 2 * int(self.rate * t1 / 2))


SIZES = {
    Preset.SMOKE: Sizes(("cosmixture",), (0.05,), 2, 4, 64, 1),
    Preset.QUICK: Sizes(("cosmixture", "digits"), (0.5, 2.0), 2, 25, 64, 1),
    Preset.PAPER: Sizes(("cosmixture", "alpine", "digits"), (0.5, 2.0, 5.0, 20.0), 5, 50, 64, 3),
}


WAYS, SHOTS = 5, 10

TITLES = {
    "cosmixture": "CosMixture", "alpine": "Alpine", "digits": f"digits, {WAYS}-way {SHOTS}-shot",
}  # fmt: skip
"""The problems."""


class Inputs(NamedTuple):
    """Tasks and an initialisation, in one dtype on one device."""

    problem: Problem
    params: Parameters
    tasks: Task


def inputs(problem: str, sizes: Sizes, device: torch.device) -> Inputs:
    """A problem's, in float64."""
    if problem == "digits":
        own = Problem(models.mlp([64, 32, WAYS]), models.cross_entropy)
        tasks = classification.flatten(classification.tasks(sizes.tasks, ways=WAYS, shots=SHOTS))
    else:
        own = Problem(functions.MODEL, models.half_mean_square)
        tasks = functions.FAMILIES[problem].tasks(range(sizes.tasks), "code", sizes.shots)
    return move(Inputs(own, own.model.init(0), tasks), device, torch.float64)


STRENGTH = 1.0
"""The proximal weight of iMAML and of A-MAML as released, their default."""

RELAXING_STEPS = 400
RELAXING_LR = 0.05
NEWTON_STEPS = 4
TRACED = 400
"""RK4 steps from which tracing the kernels of a reference pays."""

TIGHT = odeopt.Adaptive(rtol=1e-9, atol=1e-11)


class Target(NamedTuple):
    """A gradient, flat, and an estimate of its own error.

    The relative error for flows, the largest slope left for minimisers, 0 for what has only
    rounding errors or the tolerance of its solver.
    """

    gradient: Tensor
    error: float = 0.0


Targets = Callable[[str], Target]
"""Those of one problem and horizon by the name of a method, or "flow"."""


def targets_of(make: Callable[[], Inputs], t1: float, sizes: Sizes) -> Targets:
    """The targets of a problem, each computed once per process."""

    @cache
    def target(kind: str) -> Target:
        sources = make()
        if kind in FLOWS:
            steps = sizes.reference_steps(t1)
            return Target(*of_order_four(partial(FLOWS[kind], sources, t1), steps))
        if kind == "minimiser":
            return _at_minimiser(sources)
        inner = methods.Inner(LR, round(t1 / LR), 1)
        tight = {"solver": TIGHT} if kind == "comln" else {}
        return Target(_flat_gradient(methods.build(kind, sources.problem, inner, **tight), sources))

    return lambda name: target(OWN.get(name, name))


OWN = {
    "maml": "maml", "truncated-maml": "maml", "fomaml": "maml", "reptile": "maml",
    "maml-1": "maml-1", "a-maml": "flow", "a-maml-released": "regularised flow",
    "imaml-gd": "minimiser", "imaml-hf": "minimiser", "comln": "comln", "anil": "anil",
    "meta-sgd": "meta-sgd",
}  # fmt: skip
"""The kind of target of each method."""

WORDS = {
    "maml": "exact gradient of gradient descent", "maml-1": "exact gradient of one step",
    "flow": "gradient of the flow",
    "regularised flow": "gradient of its regularised flow",
    "minimiser": "implicit gradient at the minimiser", "comln": "its own, float64, tolerance 1e-9",
    "anil": "its own, float64", "meta-sgd": "its own, float64",
}  # fmt: skip
"""The kinds of targets in words."""


def _flat_gradient(method: odeopt.Method, sources: Inputs) -> Tensor:
    return flat(methods.gradient_of(method, sources.params, sources.tasks)().grads.params)


def _rk4(field: odeopt.Field, steps: int) -> odeopt.ODEOptimizer:
    compile = "trace" if steps >= TRACED else None
    return odeopt.ODEOptimizer(field, odeopt.RK4(), compile=compile)


def _flow(sources: Inputs, t1: float, steps: int) -> Tensor:
    loss = sources.problem.loss
    opt = _rk4(odeopt.GradientFlow(loss), steps)
    return _flat_gradient(odeopt.InnerLoop(opt, loss, odeopt.TimeGrid.uniform(t1, steps)), sources)


def _regularised_flow(sources: Inputs, t1: float, steps: int) -> Tensor:
    """The same with the proximal term in the inner and in the outer loss, differentiated twice.

    The centre of the term is the initialisation: in the inner loss the field passes the gradient
    on, in the outer one it is an argument of its own.
    """
    loss = sources.problem.loss

    def inner(params: dict[str, Tensor], batch: object, center: object) -> Tensor:
        del center
        return loss(params, batch)  # type: ignore[arg-type]

    def outer(params: dict[str, Tensor], batch: object, center: dict[str, Tensor]) -> Tensor:
        distance = torch.stack([(params[k] - center[k]).square().sum() for k in center]).sum()
        return loss(params, batch) + 0.5 * STRENGTH * distance  # type: ignore[arg-type]

    field = odeopt.RegularizedFlow(inner, STRENGTH)
    opt = _rk4(field, steps)
    method = odeopt.InnerLoop(opt, outer, odeopt.TimeGrid.uniform(t1, steps))
    batch = odeopt.TaskBatch(*sources.tasks)
    grads = method(sources.params, batch, sources.params).grads
    return flat(grads.params) + flat(grads.hparams)


FLOWS = {"flow": _flow, "regularised flow": _regularised_flow}


def _at_minimiser(sources: Inputs) -> Target:
    """The mean over tasks of (I + H / strength)^-1 grad L_val at the minimiser, H dense."""
    loss, layout = sources.problem.loss, ravel(sources.params, "params")
    start, unflatten = layout[0], layout[1].unflatten
    total, left = torch.zeros_like(start), 0.0
    tasks = each(sources.tasks)
    for train, validation in tasks:

        def inner(u: Tensor, train: object = train) -> Tensor:
            return loss(unflatten(u), train) + 0.5 * STRENGTH * (u - start).square().sum()

        end = _minimiser(inner, start)
        slope = grad(lambda u, data=validation: loss(unflatten(u), data))(end)
        total += STRENGTH * torch.linalg.solve(hessian(inner)(end), slope)
        left = max(left, grad(inner)(end).norm().item())
    return Target(total / len(tasks), left)


def _minimiser(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Gradient descent, which stays in the basin that iMAML's own finds, then Newton's method."""
    slope = grad(objective)
    u = start
    for _ in range(RELAXING_STEPS):
        u = u - RELAXING_LR * slope(u)
    for _ in range(NEWTON_STEPS):
        u = u - torch.linalg.solve(hessian(objective)(u), slope(u))
    return u


def entries() -> tuple[Line, ...]:
    """Every method, A-MAML twice."""
    return tuple(line for line in LINES.values() if line.compile is None and not line.is_peer)


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per problem, horizon and method."""
    chosen: list[Cell] = []
    for problem in sizes.problems:
        make = cache(partial(inputs, problem, sizes, settings.device))
        for t1 in sizes.horizons:
            compute = partial(_compute, make, targets_of(make, t1, sizes), t1, sizes.repeats)
            chosen += [Cell(key(problem, t1, one), partial(compute, one)) for one in entries()]
    return chosen


def key(problem: str, t1: float, entry: Line) -> str:
    """The key of a cell."""
    return f"{problem} T={t1:g} {entry.label}"


def _compute(
    make: Callable[[], Inputs], targets: Targets, t1: float, repeats: int, entry: Line
) -> dict[str, Any]:
    """Errors and costs, with `failure` and no numbers where there is no gradient.

    Where a guard refuses the gradient, `failure` names its error and the numbers are those of
    the same method without guards.
    """
    exact = make()
    single = move(exact, exact.tasks.train.x.device, torch.float32)
    try:
        aims = {"own": targets(entry.method), "flow": targets("flow")}
    except odeopt.OdeoptError as error:
        return {"failure": f"target: {type(error).__name__}", "message": str(error)}
    refused: dict[str, Any] = {"failure": ""}
    for safety, times in ((odeopt.Safety(), repeats), (odeopt.Safety.off(), 1)):
        try:
            return {**refused, **_numbers(entry, t1, single, aims, times, safety)}
        except odeopt.OdeoptError as error:
            if not refused["failure"]:
                refused = {"failure": type(error).__name__, "message": str(error)}
    return refused


def _numbers(
    entry: Line, t1: float, inputs: Inputs, aims: dict[str, Target], repeats: int,
    safety: odeopt.Safety,
) -> dict[str, Any]:  # fmt: skip
    run = _call(entry, t1, inputs, safety)
    first = run()  # not timed: the first run loads what the others need
    device = inputs.tasks.train.x.device
    gradient = flat(first.grads.params).double()
    return {
        **{
            side: {
                "error": relative_error(gradient, target.gradient),
                "cosine": cosine(gradient, target.gradient),
                "norm_ratio": (gradient.norm() / target.gradient.norm()).item(),
                "reference_error": target.error,
            }
            for side, target in aims.items()
        },
        "gradient_evaluations": first.stats.gradient_evaluations,
        "hvps": first.stats.hvps,
        "stored_states": first.stats.stored_states,
        "live_bytes": costs.peak_live_bytes(run, device),
        "seconds": median(costs.once(run, device) for _ in range(repeats)),
    }


def _call(
    entry: Line, t1: float, inputs: Inputs, safety: odeopt.Safety
) -> Callable[[], odeopt.MetaGradient]:
    method = method_of(entry, round(t1 / LR), inputs.problem, safety=safety)
    return methods.gradient_of(method, inputs.params, inputs.tasks)


NAME = "accuracy-vs-checkpoints --only methods"
REVISION = 1
"""Raised when what a cell computes changes, so that stored cells are computed anew."""

COLUMNS: list[markdown.Column] = [
    *(
        column
        for side in ("own", "flow")
        for column in (
            (f"error, {side}", lambda cell, side=side: float(cell[side]["error"])),
            (f"cosine, {side}", f"{{{side}[cosine]:.6f}}"),
            (f"norm, {side}", f"{{{side}[norm_ratio]:.4f}}"),
        )
    ),
    ("gradients", "{gradient_evaluations}"),
    ("HVPs", "{hvps}"),
    ("states", "{stored_states}"),
    ("live KiB", lambda cell: f"{cell['live_bytes'] / 1024:.0f}"),
    ("seconds", "{seconds:.3g}"),
]


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    sizes = SIZES[settings.preset]
    chosen = cells(settings, sizes)
    done = outline.compute(settings, NAME, REVISION, sizes, chosen)
    sections = [_head(sizes)]
    sections += [section(done.cells, problem, settings, sizes) for problem in sizes.problems]
    sections.append(_failures(done.cells))
    outline.write(settings, "The quality of meta-gradients", done, sections)


def section(results: Cells, problem: str, settings: Settings, sizes: Sizes) -> str:
    """The plot and the tables of a problem."""
    picture = _plot(results, problem, settings, sizes)
    parts = [f"## {TITLES[problem]}", *([picture] if picture else [])]
    for t1 in sizes.horizons:
        own = {entry: results[key(problem, t1, entry)] for entry in entries()}
        rows = [_row(entry, cell) for entry, cell in own.items()]
        known = [c["flow"]["reference_error"] for c in own.values() if "flow" in c]
        error = markdown.scientific(known[0]) if known else "unknown"
        parts.append(
            f"**T = {t1:g}** ({round(t1 / LR)} steps; error of the flow's reference: {error})\n\n"
            + markdown.described(["method"], COLUMNS, rows).rstrip()
        )
    return "\n\n".join(parts)


def _row(entry: Line, cell: dict[str, Any]) -> tuple[list[str], dict[str, Any] | str]:
    """The row of a method; one that is refused is marked, with its error's name."""
    label = f"{entry.label} ({cell['failure']})" if cell["failure"] else entry.label
    return [label], cell if "own" in cell else ""


def _plot(results: Cells, problem: str, settings: Settings, sizes: Sizes) -> str:
    """1 - cosine to the flow's gradient; what a guard refuses is left out."""
    lines: dict[str, dict[float, float]] = {}
    for entry in entries():
        own = {t1: results[key(problem, t1, entry)] for t1 in sizes.horizons}
        lines[entry.label] = {
            t1: 1 - cell["flow"]["cosine"] for t1, cell in own.items() if not cell["failure"]
        }
    title = f"{TITLES[problem]}: distance in direction from the flow's meta-gradient"
    labels = plots.Labels(title, "T", "1 - cosine")
    path = settings.store.directory / f"cosine-{problem}.png"
    return plots.picture(path, "1 - cosine against T", labels, lines)


def _failures(results: Cells) -> str:
    lines = [
        f"- {name}: {cell['failure']}: {cell['message']}"
        for name, cell in results.items()
        if cell["failure"]
    ]
    return "## Gradients that were refused\n\n" + ("\n".join(lines) or "- none")


def _head(sizes: Sizes) -> str:
    own = "\n".join(f"- {entry.label}: {WORDS[OWN[entry.method]]}" for entry in entries())
    return f"""The meta-gradient w.r.t. the initialisation, in float32, of {sizes.tasks} tasks
({sizes.shots} + {sizes.shots} points in the regression tasks, protocol "code"), learning rate
{LR:g} and T / {LR:g} steps. It is compared with two gradients in float64 that must not be mixed:
that of the method's *own* target, which tells how well it computes what it stands for, and that
of the *flow* (RK4 with {sizes.rate} steps per unit of time and its exact adjoint; its error is
estimated from half the steps), which tells whether what it stands for is that. Relative L2
error, cosine, and the ratio of the norms. Reptile's direction is not the gradient of anything,
and its norm means nothing. Counts are of one task; live KiB is the peak of live tensors of all
tasks, above those before. A method in whose row an error is named is refused with the default
guards; its numbers, where there are any, are those without guards.

The methods' own targets:

{own}"""
