"""Smoothed sign descent and a damped adjoint for odeopt; importing this registers them."""

from odeopt_signflow.adjoint import DampedAdjoint
from odeopt_signflow.field import SignFlow
from odeopt_signflow.method import DampedSignMAML

__version__ = "0.1.0"

__all__ = ["DampedAdjoint", "DampedSignMAML", "SignFlow", "__version__"]
