"""Who takes part."""

from __future__ import annotations

import odeopt
from benchmarks.peers import by_hand, ours, packages
from benchmarks.peers.runner import FLOW, MAP, Contender

OURS, PLAIN, EAGER = "odeopt", "odeopt plain", "odeopt eager"
BINOMIAL, DENSITY = "odeopt binomial", "odeopt density"
RK4, HERMITE, STABILISED = "odeopt rk4", "odeopt hermite", "odeopt stabilised"
HIGHER, TORCHOPT, TORCHDIFFEQ = "higher", "torchopt", "torchdiffeq"
UNROLLED, VMAP_ADJOINT, VMAP_UNROLLED = "unrolled", "vmap adjoint", "vmap unrolled"
KERNELS = "kernels"

_STEPS, _RTOL = "steps", "rtol"


_ALL = (
    Contender(OURS, "odeopt, every state", MAP, ours.descent(), _STEPS),
    Contender(PLAIN, "odeopt, plain Inductor", MAP, ours.descent(compile="inductor"), _STEPS),
    Contender(EAGER, "odeopt, not compiled", MAP, ours.descent(compile=None), _STEPS),
    Contender(BINOMIAL, "odeopt, Binomial", MAP, ours.descent(ours.binomial), _STEPS),
    Contender(DENSITY, "odeopt, Density", MAP, ours.descent(ours.density), _STEPS),
    Contender(RK4, "odeopt, RK4", FLOW, ours.flow(odeopt.DiscreteAdjoint, odeopt.RK4), _STEPS),
    Contender(
        HERMITE, "odeopt, RK4 + Hermite", FLOW,
        ours.flow(lambda: odeopt.ContinuousAdjoint(odeopt.RK4()), odeopt.RK4), _STEPS,
    ),
    Contender(STABILISED, "odeopt, StabilizedRK", FLOW, ours.stabilised, _RTOL),
    Contender(HIGHER, "higher", MAP, packages.higher, _STEPS, "higher"),
    Contender(TORCHOPT, "TorchOpt", MAP, packages.torchopt, _STEPS, "torchopt"),
    Contender(
        TORCHDIFFEQ, "torchdiffeq, odeint_adjoint", FLOW, packages.torchdiffeq, _RTOL,
        "torchdiffeq",
    ),
    Contender(UNROLLED, "unrolled autograd", MAP, by_hand.unrolled, _STEPS),
    Contender(VMAP_UNROLLED, "vmap(grad(loop))", MAP, by_hand.vmap_unrolled, _STEPS),
    Contender(VMAP_ADJOINT, "vmapped adjoint loop", MAP, by_hand.vmap_adjoint, _STEPS),
    Contender(KERNELS, "bare compiled kernels", MAP, by_hand.kernels, _STEPS),
)  # fmt: skip

CONTENDERS = {contender.name: contender for contender in _ALL}
"""By name, in the order of tables."""

PEERS = (HIGHER, TORCHOPT, TORCHDIFFEQ, UNROLLED, VMAP_UNROLLED, VMAP_ADJOINT)
"""Those that are not odeopt's, the bare kernels not counted."""
