"""Tables 4 and 5 of the paper, published, reproduced and ours; longer horizons; real inputs."""

from __future__ import annotations

from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor

import odeopt
from benchmarks.accuracy_vs_checkpoints import cases
from benchmarks.accuracy_vs_checkpoints.cases import Case, Sizes, Starts, cosmixture_case
from benchmarks.harness import markdown, plots
from benchmarks.harness.outline import Cell, Cells
from benchmarks.harness.registry import Settings
from benchmarks.problems import closed_form, published
from benchmarks.problems.data_files import MissingDataError

STARTS = 20
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def cells_4(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per horizon and number of states."""
    return [
        Cell(f"table4 T={t1} N={states}", partial(_compute_4, t1, states, settings.device))
        for t1 in published.TABLE_4
        for states in sizes.table_4_states
    ]


def _compute_4(t1: float, states: int, device: torch.device) -> dict[str, Any]:
    return {name: _errors(t1, states, dtype, device) for name, dtype in DTYPES.items()}


def _errors(t1: float, states: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Mean and deviation over the starts of the relative error of each column."""
    y0 = closed_form.initial_states(STARTS, seed=0).to(device)
    exact = closed_form.gradient(torch.tensor(t1, dtype=torch.float64), y0)
    grid = odeopt.TimeGrid.uniform(t1, states - 1)
    end = closed_form.solution(torch.tensor(t1, dtype=torch.float64), y0)
    lam = (6 * (end - 3) ** 5).to(dtype)  # the exact gradient at T
    empty = torch.zeros(0, dtype=dtype, device=y0.device)

    def gradient(outer: Any, validation: Tensor, *choices: Any) -> Tensor:
        call = odeopt.ODEOptimizer(_velocity, *choices).value_and_grad(outer)
        return call(y0.to(dtype), empty, grid, validation).grads.params

    tolerances = (1e-6, 1e-7) if dtype is torch.float32 else (1e-11, 1e-13)
    gradients = {
        # the paper's text: Dormand-Prince forward, modified Euler backward on N states
        "modified Euler": gradient(
            _outer,
            empty,
            odeopt.DormandPrince(*tolerances),
            odeopt.ContinuousAdjoint(odeopt.ModifiedEuler()),
        ),
        # the transposed midpoint rule, from the exact gradient at T: the printed adjoint column
        "midpoint": gradient(lambda y, seed: (y * seed).sum(), lam, odeopt.Midpoint()),
        # differentiation through modified Euler forward: the exact discrete adjoint
        "autodiff": gradient(_outer, empty, odeopt.ModifiedEuler()),
    }
    relative = {name: (g.double() - exact).abs() / exact.abs() for name, g in gradients.items()}
    return {name: [e.mean().item(), e.std(correction=0).item()] for name, e in relative.items()}


def _velocity(t: Tensor, state: Tensor, consts: Any, hparams: Any, batch: Any) -> Tensor:
    return closed_form.velocity(t, state)


def _outer(y: Tensor, batch: Tensor) -> Tensor:
    return closed_form.loss(y).sum()


def section_4(results: Cells, sizes: Sizes) -> str:
    """The table as Markdown."""
    parts = [_TABLE_4]
    for t1, columns in published.TABLE_4.items():
        adjoint = columns[published.TABLE_4_ADJOINT[t1]]
        other = columns["adjoint" if published.TABLE_4_ADJOINT[t1] == "autodiff" else "autodiff"]
        rows: list[list[Any]] = []
        for states in sizes.table_4_states:
            place = published.TABLE_4_STATES.index(states)
            cell = results[f"table4 T={t1} N={states}"]
            midpoint, euler, autodiff = (
                [markdown.with_spread(*cell[dtype][name]) for dtype in DTYPES]
                for name in ("midpoint", "modified Euler", "autodiff")
            )
            first, second = (markdown.with_spread(*column[place]) for column in (adjoint, other))
            rows.append([states, first, *midpoint, *euler, second, *autodiff])
        parts.append(f"\n**T = {t1}**\n\n{markdown.table(_HEADERS, rows)}")
    return "\n".join(parts)


_HEADERS = [
    "states", "published adjoint", "midpoint f32", "midpoint f64", "mod. Euler f32",
    "mod. Euler f64", "published autodiff", "autodiff f32", "autodiff f64",
]  # fmt: skip

_TABLE_4 = """## Table 4: a linear equation with a closed form

$y' = -2t^3 - 2ty$ (the paper prints x for t), $L = (y - 3)^6$, 20 starts from U(0, 1) (the paper
does not say which), N states = N - 1 steps; relative error of $dL/dy_0$, mean ± deviation.

*Published adjoint* is the deterministic column: "Adjoint" at T = 1 and 2, but the one headed
"Autodiff" at T = 0.1 and 0.5, where the two must have been swapped (the equation is linear, so
the adjoint's relative error cannot depend on the start). *Midpoint* reproduces it: the transposed
midpoint rule with N - 1 steps, not the modified Euler method of the text, whose own column stands
beside. *Autodiff* is the exact gradient of modified Euler forward; the published figures for it
depend on the unknown starts. The floor of the published figures, about 1e-6, is that of single
precision. The equation is blind to errors in the states: its Jacobian does not depend on y."""


METHODS = {
    "Euler": odeopt.Euler(),
    "modified Euler": odeopt.ModifiedEuler(),
    "RK4 + Hermite": odeopt.RK4(),
}
NODES = {"uniform": odeopt.Density, "graded": odeopt.Graded}


def cells_5(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per horizon, number of states, method and kind of nodes."""
    starts = Starts(cosmixture_case(), range(sizes.seeds), settings.device)
    axes = (sizes.table_5_horizons, sizes.table_5_states, METHODS, NODES)
    return [Cell(_key(*what), partial(_compute_5, starts, *what)) for what in product(*axes)]


def _key(t1: float, states: int, method: str, nodes: str) -> str:
    return f"table5 T={t1} N={states} {method} {nodes}"


def _compute_5(starts: Starts, t1: float, states: int, method: str, nodes: str) -> dict[str, Any]:
    target, own = starts.flow(t1)
    opt = cases.flow_optimizer(starts.case, METHODS[method], NODES[nodes](states))
    steps = states if nodes == "uniform" else max(cases.FINE, states)
    measured = starts.gradients(opt, odeopt.TimeGrid.uniform(t1, steps))
    error = cases.errors(measured.gradients, target)
    return {
        "mean": error.mean().item(),
        "deviation": error.std(correction=0).item(),
        "median": error.median().item(),
        "worst": error.max().item(),
        "reference_error": own,
        "gradient_evaluations": measured.stats.gradient_evaluations,
        "hvps": measured.stats.hvps,
    }


def section_5(results: Cells, settings: Settings, sizes: Sizes) -> str:
    """The tables and the plot."""
    parts = [_TABLE_5]
    printed: list[float] = []
    for t1 in sizes.table_5_horizons:
        rows: list[list[Any]] = []
        places = [published.TABLE_5_STATES.index(n) for n in sizes.table_5_states]
        column = [published.TABLE_5[t1][place] for place in places]
        for n, entry in zip(sizes.table_5_states, column, strict=True):
            own = [results[_key(t1, n, *what)] for what in product(METHODS, NODES)]
            ours = [markdown.with_spread(cell["mean"], cell["deviation"]) for cell in own]
            rows.append([n, markdown.with_spread(*entry), *ours])
        error = results[_key(t1, sizes.table_5_states[0], "Euler", "uniform")]["reference_error"]
        headers = ["states", "published", *(f"{m}, {n}" for m, n in product(METHODS, NODES))]
        parts.append(
            f"**T = {t1}** (the reference's own error is {markdown.scientific(error)})\n\n"
            + markdown.table(headers, rows)
        )
        printed = [entry.mean for entry in column]
    t1 = sizes.table_5_horizons[-1]
    lines = [plots.Series("published", sizes.table_5_states, printed, "--")]
    for method, (nodes, style) in product(METHODS, (("uniform", "-"), ("graded", "--"))):
        means = [results[_key(t1, n, method, nodes)]["mean"] for n in sizes.table_5_states]
        lines.append(plots.Series(f"{method}, {nodes}", sizes.table_5_states, means, style))
    title = f"CosMixture, T = {t1}: error of the flow's gradient"
    labels = plots.Labels(title, "kept states", "relative L2 error")
    plots.loglog(settings.store.directory / "table5.png", labels, lines)
    return "\n\n".join([*parts, f"![Table 5 at T = {t1}](table5.png)"])


_TABLE_5 = """## Table 5: CosMixture at short horizons

Relative error of the gradient of the *flow*, mean ± deviation over random starts and tasks;
Dormand-Prince forward (tolerance 1e-10), a continuous adjoint backward on N kept states, evenly
spread or graded. The reference is RK4 with its exact adjoint on a much finer grid.

The published figures are not errors: they are distances to the same method's own result with 1000
states, and they shrink like 1/N - 1/1000, that is with first order, where the method of the text
is of second order. *Euler* is what that order belongs to."""


COMBINED = {
    "modified Euler": (odeopt.ModifiedEuler(), odeopt.Density),
    "modified Euler, graded": (odeopt.ModifiedEuler(), odeopt.Graded),
    "RK4 + Hermite": (odeopt.RK4(), odeopt.Density),
    "RK4 + Hermite, graded": (odeopt.RK4(), odeopt.Graded),
}
T1, SEEDS = 5.0, 2
"""Of real inputs."""


def horizon_cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per horizon, number of states and method, and one for backsolve."""
    starts = Starts(cases.cosmixture_case(), range(sizes.horizon_seeds), settings.device)
    chosen: list[Cell] = []
    for t1 in sizes.horizons:
        for n, method in product(sizes.horizon_states, COMBINED):
            compute = partial(_compute, starts, t1, n, method, "trace")
            chosen.append(Cell(f"horizon T={t1} N={n} {method}", compute))
        chosen.append(Cell(f"horizon T={t1} backsolve", partial(_backsolve, starts, t1)))
    return chosen


def input_cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per input, number of states and method."""
    chosen: list[Cell] = []
    for case in _inputs(settings)[0]:
        starts = Starts(case, range(SEEDS), settings.device)
        chosen += [
            Cell(f"inputs {case.name} N={n} {method}", partial(_compute, starts, T1, n, method))
            for n in sizes.input_states
            for method in COMBINED
        ]
    return chosen


def _inputs(settings: Settings) -> tuple[list[Case], str]:
    """The cases, and why one is missing."""
    digits = list(cases.digits_cases())
    if settings.data is None:
        return digits, "No data folder was given (`--data`), so ratings are left out."
    try:
        return [*digits, cases.ratings_case(settings.data)], ""
    except MissingDataError as error:
        return digits, f"Ratings are left out: {error}"


def _compute(
    starts: Starts, t1: float, states: int, method: str, compile: str | None = None
) -> dict[str, Any]:
    backward, nodes = COMBINED[method]

    def make(safety: odeopt.Safety) -> odeopt.ODEOptimizer:
        return cases.flow_optimizer(starts.case, backward, nodes(states), safety, compile)

    steps = states if nodes is odeopt.Density else max(4 * states, cases.FINE)
    return starts.guarded(make, t1, steps)


def _backsolve(starts: Starts, t1: float) -> dict[str, Any]:
    flow = odeopt.GradientFlow(starts.case.problem.loss)
    make = partial(
        odeopt.ODEOptimizer, flow, odeopt.RK4(), odeopt.BacksolveAdjoint(), None, compile="trace"
    )
    steps = cases.reference_steps(starts.case, t1)
    return starts.guarded(lambda safety: make(safety=safety), t1, steps)


def horizon_section(results: Cells, sizes: Sizes) -> str:
    """The table of horizons, with the guards that fired."""
    rows: list[list[Any]] = []
    fired: list[str] = []
    for t1 in sizes.horizons:
        backsolve = results[f"horizon T={t1} backsolve"]
        for n in sizes.horizon_states:
            own = {method: results[f"horizon T={t1} N={n} {method}"] for method in COMBINED}
            rows.append([f"{t1:g}", n, *_entries([*own.values(), backsolve])])
            fired += [
                f"- T = {t1}, {n} states, {method}: {cell['guard']}"
                for method, cell in own.items()
                if cell["guard"]
            ]
        if backsolve["guard"]:
            fired.append(f"- T = {t1}, backsolve: {backsolve['guard']}")
    headers = ["T", "states", *COMBINED, "backsolve (no states)", "error of the reference"]
    guards = "\n".join(fired) or "- none"
    return f"{_HORIZONS}\n\n{markdown.table(headers, rows)}\n\nGuards that fired:\n\n{guards}"


def input_section(results: Cells, settings: Settings, sizes: Sizes) -> str:
    """The table of real inputs."""
    known, missing = _inputs(settings)
    rows = [
        [case.name, n, *_entries([results[f"inputs {case.name} N={n} {m}"] for m in COMBINED])]
        for case in known
        for n in sizes.input_states
    ]
    headers = ["input", "states", *COMBINED, "error of the reference"]
    return f"{_INPUTS}\n\n{markdown.table(headers, rows)}\n\n{missing}"


def _entries(cells: list[dict[str, Any]]) -> list[str]:
    """Median errors, and that of the reference.

    One that a guard refuses is called unstable, its error in brackets.
    """
    entries: list[str] = []
    for cell in cells:
        error = median(cell["errors"])
        bare = f"{error:.0e}" if error == error else "not finite"  # noqa: PLR0124  (NaN)
        entries.append(f"unstable ({bare})" if cell["guard"] else markdown.scientific(error))
    return [*entries, markdown.scientific(cells[0]["reference_error"])]


_HORIZONS = """## Longer horizons

The same against the flow's gradient at longer horizons, median over the starts. *Unstable* cells
are those that odeopt refuses with its default `Safety`; in brackets the error that the gradient
would have had. *Backsolve* integrates state and adjoint back from T together (RK4, with the
steps of the reference) and keeps nothing."""

_INPUTS = f"""## Real inputs

Five-way, ten-shot digits (scikit-learn) with a tanh perceptron and a small convolutional net,
cross-entropy; and one user's ratings (MovieLens latest-small of October 2016, ten training and
fifteen validation ratings, network 100-40-40-1). T = {T1:g}, median of {SEEDS} seeds."""
