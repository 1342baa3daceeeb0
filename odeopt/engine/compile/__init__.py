"""Kernels recorded as graphs, and the backends that make functions of them."""

from odeopt.engine.compile.backend import Backend, Compiled, Trace, record
from odeopt.engine.compile.inductor import Inductor

__all__ = ["Backend", "Compiled", "Inductor", "Trace", "record"]
