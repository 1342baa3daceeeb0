"""The inner optimiser: a field that is followed, or an update rule that is repeated."""

from odeopt.inner.base import InnerOptimizer
from odeopt.inner.clipping import clip_by_norm, clip_by_value
from odeopt.inner.field import CallableField, Field, GradientField, as_field
from odeopt.inner.flows import GradientFlow, HeavyBall, RegularizedFlow
from odeopt.inner.leafwise import LeafwiseRule
from odeopt.inner.optimizers import SGD, Adam, AdamW, RMSprop
from odeopt.inner.rule import GradientRule, RuleState, UpdateRule

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CallableField",
    "Field",
    "GradientField",
    "GradientFlow",
    "GradientRule",
    "HeavyBall",
    "InnerOptimizer",
    "LeafwiseRule",
    "RMSprop",
    "RegularizedFlow",
    "RuleState",
    "UpdateRule",
    "as_field",
    "clip_by_norm",
    "clip_by_value",
]
