"""Mutants that no test can kill, each with the reason; they are not drawn."""

from __future__ import annotations

from typing import NamedTuple


class Equivalent(NamedTuple):
    """A mutant by the line that it makes, and why nobody could tell it from the original."""

    path: str
    line: str
    reason: str


EQUIVALENT = (
    Equivalent(
        "odeopt/engine/steppers.py",
        "waiting = self.waits.between(k, k + 2)",
        "A step of zero length leaves a state as it is, unless the velocity is not finite there;"
        " then the next step, which begins at the same time and state, fails as well.",
    ),
    Equivalent(
        "odeopt/gradient/event.py",
        "done = done | (high - low < tiny * high) | (below & (g == 0))",
        "An interval that is to the last bit as short as wanted may as well be cut once more.",
    ),
    Equivalent(
        "odeopt/engine/adaptive.py",
        "LANDS = 2e-09",
        "Any part of a step that is far above rounding and far below what is seen will do.",
    ),
    Equivalent(
        "odeopt/engine/backward.py",
        "generator = torch.Generator().manual_seed(1)",
        "Any seed draws a random vector.",
    ),
    Equivalent(
        "odeopt/solver/stabilized.py",
        "unstable = good & (dt * self._radius_ahead * SAFETY**0.5 >= limit)",
        "A step that is to the last bit as long as is stable may as well be made again.",
    ),
    Equivalent(
        "odeopt/engine/adaptive.py",
        "lands = point.t + self._dt * (1 + LANDS) > target",
        "A step that comes to the target up to 1e-9 of its length lands there; whether one that"
        " misses it by just that to the last bit does, too, is as good either way.",
    ),
    Equivalent(
        "odeopt/engine/adaptive.py",
        "accepted = (error < 1) | point.failed",
        "An error that is to the last bit what is allowed may as well be refused.",
    ),
    Equivalent(
        "odeopt/solver/stabilized.py",
        "rejected = active & ~(error < 1)",
        "The same for an error that is to the last bit what is allowed.",
    ),
    Equivalent(
        "odeopt/solver/stabilized.py",
        "stiffness = torch.where(active, dt * self._radius * self._margin, 1.0).amax().item()",
        "Two stages, the fewest there are, do for a stiffness of one.",
    ),
    Equivalent(
        "odeopt/gradient/event.py",
        "g_high = torch.where(above & was_above, g_high / 3, g_high)  # the end that stays behind",
        "Any factor below one brings the end that stays behind into play.",
    ),
    Equivalent(
        "odeopt/solver/error_control.py",
        "error = torch.where(dt >= 0, error, torch.zeros_like(dt))",
        "An attempt of zero length, of a task that waits, has no error in any case.",
    ),
    Equivalent(
        "odeopt/engine/adaptive.py",
        "self._dt = torch.where(dt >= 0, proposal, self._dt)",
        "A task that waits has landed: what is proposed to it is at least the step that it had.",
    ),
    Equivalent(
        "odeopt/solver/spectral_radius.py",
        "self._generator = torch.Generator().manual_seed(1)",
        "Any seed draws a random vector.",
    ),
    Equivalent(
        "odeopt/engine/run.py",
        "over = (gaps.reshape(len(trace.starts), -1) >= 1).any(-1).nonzero().flatten().tolist()",
        "Whether a gap that rounding explains to the last bit still passes does not matter.",
    ),
    Equivalent(
        "odeopt/gradient/event.py",
        "tiny = 5 * torch.finfo(high.dtype).eps",
        "A root to four or five units of rounding.",
    ),
    Equivalent(
        "odeopt/gradient/event.py",
        "slope = torch.where(done, (torch.ones_like(g_low)), g_high - g_low)",
        "It keeps a division from being one by zero, where the quotient is not used.",
    ),
    Equivalent(
        "odeopt/outer/workers/spreading.py",
        "no_grid = TimeGrid.uniform(1.0, 0)",
        "A grid without a step has no length, whatever it is asked to have.",
    ),
    Equivalent(
        "odeopt/tools/packing.py",
        "if stride == 0 and size >= 1:",
        "To narrow a dimension of size one to one entry leaves it as it is.",
    ),
    Equivalent(
        "odeopt/checkpoint/store/host.py",
        "if True:",
        "It asks which states come from a GPU; those of a CPU are the same either way.",
    ),
)

ON_A_GPU = {
    "odeopt/checkpoint/store/host.py": ("_send", "_fetch", "_stream", "_mark", "prefetch"),
}
"""Functions by module that only states on a GPU reach: no test without one can look at them."""
