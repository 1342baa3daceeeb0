"""Whether the backward sweep met the steps that the forward sweep had made."""

from __future__ import annotations

import torch
from torch import Tensor

from odeopt.adjoint.base import Interval, LocalAdjoint
from odeopt.engine.backward import StepKernels, Trace
from odeopt.engine.forward import Trajectory, fingerprint
from odeopt.engine.pulled import Scalars
from odeopt.engine.run import Run
from odeopt.errors import NondeterminismError


def check_replay(run: Run, trace: Trace) -> None:
    """Raise if the backward sweep met other steps than the forward sweep had made.

    Replayed states are compared bit for bit. Steps that were differentiated are compared with
    where the solve came to, up to rounding. Where that does not explain a difference (code that was
    compiled in two ways may round in two ways, and some rules magnify it) both are made once more:
    what comes out the same again was no accident, and nothing has changed.

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
    if over and not _happens_again(run, trace.end, {trace.starts[row]: gaps[row] for row in over}):
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


def _happens_again(run: Run, end: Tensor, gaps: dict[int, Tensor]) -> bool:
    """Whether both sweeps come to the same again: the end of the solve, and gaps at some steps."""
    adjoint, stepper, y = run.choices.adjoint, run.stepper, run.problem.y0
    assert isinstance(adjoint, LocalAdjoint), "others have no gaps"
    pull = StepKernels(run.kernels, stepper, adjoint).pull
    for k in range(stepper.length or 0):
        before, y = y, stepper.advance(k, y)
        if k in gaps:
            interval = Interval(*stepper.interval(k, k + 1), before, y)
            pulled = pull(k, interval, torch.zeros_like(y))
            if not torch.equal(Scalars.apart(pulled.scalars).gap, gaps[k]):
                return False
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
