"""Turning what a sweep noticed into a status per task, and a status into an error."""

from __future__ import annotations

import torch
from torch import Tensor

from odeopt.adjoint.base import Swept
from odeopt.engine import Run
from odeopt.errors import DivergenceError, NondeterminismError, OdeoptError, StabilityError
from odeopt.safety import Safety, Status
from odeopt.sweep.backward import Trace
from odeopt.sweep.forward import Trajectory, fingerprint
from odeopt.theta import Theta


def state_status(y_end: Tensor) -> Tensor:
    """STATE_NOT_FINITE where the final state is not finite; integers of shape [] or [tasks]."""
    finite = torch.isfinite(y_end).all(-1)
    return torch.where(finite, int(Status.OK), int(Status.STATE_NOT_FINITE))


def merge(status: Tensor, failed: Tensor, code: Status) -> Tensor:
    """The status, with a code for tasks that were well and failed now."""
    return torch.where((status == Status.OK) & failed, int(code), status)


def backward_status(status: Tensor, swept: Swept, trace: Trace, safety: Safety) -> Tensor:
    """The status after the backward sweep."""
    status = merge(status, ~_finite(swept), Status.ADJOINT_NOT_FINITE)
    for _, values, limit, code in _limits(swept, trace, safety):
        status = merge(status, (values > limit).any(0), code)
    return status


def outer_status(status: Tensor, gradients: list[Tensor]) -> Tensor:
    """The status after differentiating the outer loss, from its gradients [..., d] or scalars."""
    for gradient in gradients:
        finite = torch.isfinite(gradient).reshape(*status.shape, -1).all(-1)
        status = merge(status, ~finite, Status.OUTER_GRADIENT_NOT_FINITE)
    return status


def drop_failed(swept: Swept, ok: Tensor) -> Swept:
    """The gradients with zeros for tasks that failed; `ok` has shape [tasks]."""

    def keep(leaf: Tensor) -> Tensor:
        mask = ok.reshape(-1, *(1,) * (leaf.ndim - 1))
        return torch.where(mask, leaf, torch.zeros_like(leaf))

    theta = swept.theta
    if theta is not None:
        theta = Theta(*(tuple(keep(leaf) for leaf in part) for part in theta))
    return swept._replace(lam=keep(swept.lam), t=keep(swept.t), dt=keep(swept.dt), theta=theta)


def _finite(swept: Swept) -> Tensor:
    """Whether every gradient of a task is finite, shape [] or [tasks]."""
    finite = torch.isfinite(swept.lam).all(-1) & torch.isfinite(swept.dt).all(-1)
    for part in swept.theta or ():
        for leaf in part:
            finite = finite & torch.isfinite(leaf).reshape(*finite.shape, -1).all(-1)
    return finite


def check_replay(run: Run, trace: Trace) -> None:
    """Raise if the backward sweep met other steps than the forward sweep had made.

    Replayed states are compared bit for bit. Steps that were differentiated are compared with
    where the solve came to, up to rounding; where that does not explain the difference the solve
    is made once more, and its end decides.

    Raises:
        NondeterminismError: if they differ.
    """
    if not trace.starts:
        return
    other = _first_other_state(run.trajectory, trace)
    if other is not None:
        raise NondeterminismError(_REPLAYED.format(step=other))
    gaps = trace.read(trace.end).gap
    over = (gaps.reshape(len(trace.starts), -1) > 1).any(-1).nonzero().flatten().tolist()
    if over and not _ends_alike(run, trace.end):
        raise NondeterminismError(_CHANGED.format(step=min(trace.starts[row] for row in over)))


def _first_other_state(trajectory: Trajectory, trace: Trace) -> int | None:
    """The first replayed state that differs from the one of the forward sweep."""
    if not trace.prints:
        return None
    found = trace.prints.stacked(trace.end)
    indices = torch.tensor(trace.starts, device=found.device) - trajectory.first
    expected = trajectory.prints.stacked(trace.end)[indices]
    different = (found != expected) & ~(found.isnan() & expected.isnan())
    rows = different.reshape(different.shape[0], -1).any(-1).nonzero().flatten().tolist()
    return min((trace.starts[row] for row in rows), default=None)


def _ends_alike(run: Run, end: Tensor) -> bool:
    """Whether the forward sweep, made once more, leads to a state with the same fingerprint."""
    y = run.problem.y0
    for k in range(run.stepper.length or 0):
        y = run.stepper.advance(k, y)
    return torch.equal(fingerprint(y), end)


_REPLAYED = (
    "the state before step {step} is not the same when it is replayed. The loss is not a pure"
    " function of its arguments (random numbers, a counter, non-deterministic CUDA kernels), or"
    " something that it uses has changed since: make it one, call"
    " torch.use_deterministic_algorithms(True), or keep every state with checkpoints=Every(1)."
)
_CHANGED = (
    "step {step} does not lead where it led in the forward sweep, when it is made again to be"
    " differentiated. Something that the loss uses has changed since the solve: a number or tensor"
    " that it captures, an attribute of a module, the data behind a Stream; or another thread draws"
    " random numbers. Pass what changes in hparams or in the batch, and change it after backward()."
)


def raise_for_status(status: Tensor, run: Run, swept: Swept | None, trace: Trace) -> None:
    """Raise the error of the first task that failed, if one did."""
    codes: list[int] = status.reshape(-1).tolist()
    failed = [index for index, code in enumerate(codes) if code != Status.OK]
    if not failed:
        return
    task = failed[0]
    who = "" if run.problem.tasks is None else f"task {task}: "
    if len(failed) > 1:
        who = f"tasks {', '.join(map(str, failed))} failed; {who}"
    raise _error(Status(codes[task]), who, task, run, swept, trace)


def _error(
    code: Status, who: str, task: int, run: Run, swept: Swept | None, trace: Trace
) -> OdeoptError:
    match code:
        case Status.STATE_NOT_FINITE:
            return DivergenceError(who + _where_state_fails(run, task))
        case Status.VALUE_NOT_FINITE:
            return DivergenceError(
                f"{who}the outer loss is not finite at a finite final state: look for logarithms,"
                " divisions or square roots at zero in it."
            )
        case Status.OUTER_GRADIENT_NOT_FINITE:
            return DivergenceError(
                f"{who}the gradient of the outer loss is not finite, though its value is: look"
                " for square roots, norms and logarithms at zero in it."
            )
        case Status.ADJOINT_NOT_FINITE:
            assert swept is not None, "only a backward sweep gives this code"
            return DivergenceError(who + _where_adjoint_fails(run, swept, trace, task))
        case _:
            assert swept is not None, "only a backward sweep gives these codes"
            return StabilityError(who + _what_is_unstable(code, run, swept, trace, task))


def _limits(swept: Swept, trace: Trace, safety: Safety) -> list[tuple[str, Tensor, float, Status]]:
    """(name, values of shape [pulls] or [pulls, tasks], limit, code) of each check that is on."""
    found: list[tuple[str, Tensor, float, Status]] = []
    if trace.spectral:
        found.append(("spectral", torch.stack(trace.spectral), 1.0, Status.UNSTABLE))
    if trace.starts:
        scalars = trace.read(swept.growth)
        if safety.step_ratio is not None:
            found.append(("step_ratio", scalars.step_ratio, safety.step_ratio, Status.UNSTABLE))
        if safety.defect is not None:
            found.append(("defect", scalars.defect, safety.defect, Status.STATE_TOO_COARSE))
    if safety.defect is not None and not trace.exact:
        found.append(("mismatch", swept.mismatch[None], safety.defect, Status.STATE_TOO_COARSE))
    if safety.growth is not None and not trace.exact:
        found.append(("growth", swept.growth[None], safety.growth, Status.UNSTABLE))
    return found


def _what_is_unstable(code: Status, run: Run, swept: Swept, trace: Trace, task: int) -> str:
    for name, values, limit, own in _limits(swept, trace, run.choices.safety):
        column = values.reshape(values.shape[0], -1)[:, task]
        over = (column > limit).nonzero().flatten().tolist()
        if own is code and over:
            start = trace.starts[over[0]] if trace.starts else 0
            where = f"the interval from state {start} (t = {_time(run, start, task):g})"
            return _ADVICE[name].format(where=where, value=column[over[0]].item(), limit=limit)
    raise AssertionError("a status is set only where a limit is exceeded")


_ADVICE = {
    "spectral": (
        "{where} is {value:.2f} times as long as the stability limit for the estimated spectral"
        " radius: take smaller steps (a lower learning rate, a finer grid or denser checkpoints)."
    ),
    "step_ratio": (
        "{where} is too long for the backward method: step times rate of the adjoint is"
        " {value:.2f} times its stability limit. Keep more states, evenly spread, or use"
        " DiscreteAdjoint(), which is stable wherever the solver is."
    ),
    "defect": (
        "the state interpolated over {where} misses the flow by {value:.2f} of the way it goes"
        " (limit {limit:g}): keep more states, use Graded(n), or use DiscreteAdjoint()."
    ),
    "mismatch": (
        "solving backward missed the initial state by {value:.1e} of the way from it to the final"
        " one (limit {limit:g}): the reconstructed states, and the gradient with them, cannot be"
        " trusted. Use DiscreteAdjoint(), or ContinuousAdjoint(RK4()) on kept states."
    ),
    "growth": (
        "the adjoint variable grew by {value:.1e} in the backward sweep (limit {limit:g}), which"
        " is a sign of instability: keep more states, use DiscreteAdjoint() in place of an"
        " approximate adjoint, or raise Safety.growth if such growth is real."
    ),
}


def _where_state_fails(run: Run, task: int) -> str:
    step = _first_bad_step(run, task)
    if step is None:
        return "the final state is not finite: take smaller steps."
    return (
        f"the state is not finite after step {step} (t = {_time(run, step, task):g}). The inner"
        " optimisation diverges: take smaller steps (a lower learning rate or a finer grid), or"
        " look for a loss that is not finite."
    )


def _first_bad_step(run: Run, task: int) -> int | None:
    """Run the forward sweep again and look at each state."""
    y = run.problem.y0
    for k in range(run.stepper.length or 0):
        y = run.stepper.advance(k, y)
        row = y if run.problem.tasks is None else y[task]
        if not bool(torch.isfinite(row).all()):
            return k
    return None


def _where_adjoint_fails(run: Run, swept: Swept, trace: Trace, task: int) -> str:
    for start, norm in zip(trace.starts, trace.read(swept.growth).norm, strict=True):
        if not bool(torch.isfinite(norm.reshape(-1)[task])):
            return (
                f"the adjoint variable is not finite before state {start}"
                f" (t = {_time(run, start, task):g}), though the states are: the backward sweep"
                " blows up. Keep more states, use DiscreteAdjoint(), or look for second"
                " derivatives that are not finite (a square root or norm at zero)."
            )
    lam = swept.lam if run.problem.tasks is None else swept.lam[task]
    if not bool(torch.isfinite(lam).all()):
        return (
            "the adjoint variable is not finite: the backward sweep blows up. Use"
            " DiscreteAdjoint(), or look for second derivatives that are not finite."
        )
    return (
        "a gradient is not finite, though the states and the adjoint variable are: look for"
        " square roots, norms and logarithms at zero in the way that the inner loss uses hparams."
    )


def _time(run: Run, step: int, task: int) -> float:
    return run.stepper.time(step).reshape(-1)[task if run.problem.tasks is not None else 0].item()
