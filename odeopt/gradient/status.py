"""Turning what a sweep noticed into a status per task, and a status into an error."""

from __future__ import annotations

import torch
from torch import Tensor

from odeopt.adjoint.base import Swept
from odeopt.engine.backward import Trace
from odeopt.engine.run import Run
from odeopt.engine.safety import Safety, Status
from odeopt.errors import DivergenceError, OdeoptError, StabilityError
from odeopt.solver.dynamics import Theta


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
    for k in range(run.stepper.length):
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
