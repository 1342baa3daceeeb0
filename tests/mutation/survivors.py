"""Mutants that tests once let live, by name; each run tries them out, and none may survive again.

The text that is replaced is exact: where the code changes, what is here must follow it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.mutation.mutant import Mutant, replacing


class _Named(NamedTuple):
    path: str
    old: str
    new: str


_NAMED = {
    "learner-clip": _Named(
        "odeopt/outer/outer_loop.py",
        "1.0 if self._clip is None or norm <= self._clip else",
        "1.0 if self._clip is None else",
    ),
    "learner-random-not-saved": _Named(
        "odeopt/outer/outer_loop.py", "torch.get_rng_state(),", "torch.Generator().get_state(),"
    ),
    "learner-random-not-restored": _Named(
        "odeopt/outer/outer_loop.py", "torch.set_rng_state(checkpoint.random)", "pass"
    ),
    "event-never": _Named(
        "odeopt/gradient/event.py",
        "never = (step == 0) & (length == 0)",
        "never = step == 0",
    ),
    "fingerprint-of-the-norm": _Named(
        "odeopt/engine/forward.py",
        "return torch.add(state.sum(-1), norm, alpha=math.sqrt(2))",
        "return norm",
    ),
    "fingerprint-of-the-sum": _Named(
        "odeopt/engine/forward.py",
        "return torch.add(state.sum(-1), norm, alpha=math.sqrt(2))",
        "return state.sum(-1)",
    ),
    "hermite-defect-rounding": _Named(
        "odeopt/adjoint/continuous.py",
        "torch.linalg.vector_norm(change) + rounding * torch.linalg.vector_norm(interval.y1)",
        "torch.linalg.vector_norm(change)",
    ),
    "identity-without-hparams": _Named(
        "odeopt/engine/journal.py", "digest([*theta.shared, *data.shared])", "digest([])"
    ),
    "identity-without-data-of-hparams": _Named(
        "odeopt/engine/journal.py",
        "digest([*theta.shared, *data.shared])",
        "digest([*theta.shared])",
    ),
    "identity-without-batch": _Named(
        "odeopt/engine/journal.py", "digest([*theta.batch, *data.batch])", "digest([])"
    ),
    "identity-without-stream-seed": _Named(
        "odeopt/engine/journal.py", "(stream.seed, stream.length)", "(None, stream.length)"
    ),
    "disk-without-unlink": _Named(
        "odeopt/checkpoint/store/disk.py",
        "state_file(self._folder, index).unlink(missing_ok=True)",
        "pass",
    ),
    "resumable-without-unlink": _Named(
        "odeopt/checkpoint/store/solve_folder.py",
        "state_file(self._folder.path, index).unlink(missing_ok=True)",
        "pass",
    ),
    "folder-without-unlink": _Named(
        "odeopt/checkpoint/store/solve_files.py", "path.unlink(missing_ok=True)", "pass"
    ),
    "no-fsync": _Named("odeopt/tools/files.py", "os.fsync(file.fileno())", "pass"),
}


def named_mutants(root: Path) -> list[Mutant]:
    """All of them.

    Raises:
        LookupError: if the code of one has changed.
    """
    return [replacing(root, *parts, operator=name) for name, parts in _NAMED.items()]
