"""Fields: inner optimisers as ordinary differential equations."""

from odeopt.field.base import CallableField, Field, GradientField, as_field
from odeopt.field.gradient_flow import GradientFlow
from odeopt.field.heavy_ball import HeavyBall
from odeopt.field.regularized_flow import RegularizedFlow

__all__ = [
    "CallableField",
    "Field",
    "GradientField",
    "GradientFlow",
    "HeavyBall",
    "RegularizedFlow",
    "as_field",
]
