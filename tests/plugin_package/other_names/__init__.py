"""Built-ins written again under other names, as a plugin would: on the same interfaces alone.

None of them derives from what it copies, so that generic code cannot know it by its class.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from typing_extensions import override

from odeopt import LeafwiseRule
from odeopt.adjoint import LocalAdjoint, Pulled
from odeopt.adjoint.base import Cost, Diagnostics
from odeopt.checkpoint.store import Shelf, Tier
from odeopt.solver import ErrorControlled, chebyshev
from odeopt.solver.dynamics import add_thetas, scale_theta
from odeopt.solver.error_control import Attempt, Tolerances
from odeopt.solver.stabilized import CONTROLLER, StageChoice


class OtherRKC(ErrorControlled):
    """`StabilizedRK`."""

    order = 2
    error_order = 2
    real_spectrum = True
    by_stage = True

    def __init__(self, rtol=1e-4, atol=1e-6, most=256, stages=None):
        self.tolerances = Tolerances(rtol, atol, CONTROLLER, None, 100_000)
        self.most, self.chooses_steps = most, stages is None
        self.stages = self.attempt_gradients = stages or 10
        self.stability_limit = chebyshev.coefficients(self.stages).beta
        self.error_constant = chebyshev.coefficients(self.stages).error

    @override
    def attempts(self, evaluate):
        return StageChoice(evaluate, self.tolerances.controller, self.most)

    @override
    def made_with(self, key):
        own = self.tolerances
        return self if key is None else OtherRKC(own.rtol, own.atol, self.most, key)

    @override
    def combined(self, keys, lengths):
        parts = zip(keys, lengths, strict=True)
        stiffest = max(chebyshev.stiffness_of(s) * longer for s, longer in parts)
        return chebyshev.stages_for(stiffest, self.most)

    @override
    def step(self, velocity, t, dt, y):
        return chebyshev.step(self.stages, velocity, t, dt, y, velocity(t, y))

    @override
    def attempt(self, velocity, t, dt, y, slope):
        after = chebyshev.step(self.stages, velocity, t, dt, y, slope)
        ahead = velocity(t + dt, after)
        error = 0.8 * (y - after) + 0.4 * dt[..., None] * (slope + ahead)
        return Attempt(after, self.tolerances.ratio(error, y, after), ahead)

    @override
    def pull(self, stepping, t, dt, y0, lam):
        return chebyshev.pull(self.stages, stepping.linearize, t, dt, y0, lam)


class OtherAdam(LeafwiseRule):
    """`Adam` with its default settings."""

    slot_names = ("mean", "square")

    @override
    def options(self):
        return {}

    @override
    def step(self, k, lr, g, u, slots, options):
        mean = torch.lerp(slots["mean"], g, 0.1)
        square = slots["square"] * 0.999 + 0.001 * g**2
        count = k.to(torch.float64) + 1
        first, second = ((1 - beta**count).to(u.dtype) for beta in (0.9, 0.999))
        root = torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
        scale = root / second.sqrt() + 1e-8
        after = {"mean": mean, "square": square}
        return torch.addcdiv(u, mean * (lr / first), scale, value=-1), after


class OtherContinuous(LocalAdjoint):
    """`ContinuousAdjoint(Euler())`: one implicit step back from the end of each interval."""

    replays = False
    order = 1

    @override
    def stability_limit(self, solver):
        return 2.0

    @override
    def pull(self, solver, stepping, interval, lam):
        t, dt, _, y1 = interval
        point = stepping.linearize(t + dt, y1)
        back = point.pullback(lam)
        rate, size = torch.linalg.vector_norm(back.y), torch.linalg.vector_norm(lam)
        ratio = dt * rate / ((size + torch.finfo(dt.dtype).tiny) * 2.0)
        return Pulled(
            lam + dt * back.y, dt * back.t, torch.dot(lam, point.value) + dt * back.t,
            add_thetas([scale_theta(back.theta, dt)]), Diagnostics(ratio, torch.zeros_like(dt)),
        )  # fmt: skip

    @override
    def cost(self, solver):
        return Cost(gradients=0, hvps=1)


class Drawer(Tier):
    """`Device`, in a kind of memory of its own."""

    kind: ClassVar[str] = "drawer"
    at_hand: ClassVar[bool] = True

    def __init__(self):
        self.opened = []

    @override
    def open(self):
        self.opened.append(_Drawer())
        return self.opened[-1]

    @override
    def settings(self):
        return {"kind": self.kind}


class _Drawer(Shelf):
    def __init__(self):
        self.states, self.prefetched = {}, []

    @override
    def put(self, index, state):
        self.states[index] = state

    @override
    def get(self, index):
        return self.states[index]

    @override
    def drop(self, index):
        del self.states[index]

    @override
    def prefetch(self, index):
        self.prefetched.append(index)

    @override
    def close(self, done):
        self.states.clear()
