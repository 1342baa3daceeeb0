"""The inner optimiser: a field that is followed, or an update rule that is repeated."""

from odeopt.inner.adam import Adam, Adamax, AdamW, NAdam, RAdam
from odeopt.inner.adaptive_rates import Adadelta, Adagrad, RMSprop
from odeopt.inner.base import InnerOptimizer
from odeopt.inner.clipping import clip_by_norm, clip_by_value
from odeopt.inner.field import CallableField, Field, GradientField, as_field
from odeopt.inner.flows import GradientFlow, HeavyBall, RegularizedFlow
from odeopt.inner.leafwise import LeafwiseRule
from odeopt.inner.rprop import Rprop
from odeopt.inner.rule import GradientRule, RuleState, UpdateRule
from odeopt.inner.sgd import ASGD, SGD

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "CallableField",
    "Field",
    "GradientField",
    "GradientFlow",
    "GradientRule",
    "HeavyBall",
    "InnerOptimizer",
    "LeafwiseRule",
    "NAdam",
    "RAdam",
    "RMSprop",
    "RegularizedFlow",
    "Rprop",
    "RuleState",
    "UpdateRule",
    "as_field",
    "clip_by_norm",
    "clip_by_value",
]
