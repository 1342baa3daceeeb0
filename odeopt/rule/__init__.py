"""Update rules: inner optimisers as recurrences."""

from odeopt.rule.adam import Adam, AdamW
from odeopt.rule.base import GradientRule, RuleState, UpdateRule
from odeopt.rule.clipping import clip_by_norm, clip_by_value
from odeopt.rule.leafwise import LeafwiseRule
from odeopt.rule.rmsprop import RMSprop
from odeopt.rule.sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "GradientRule",
    "LeafwiseRule",
    "RMSprop",
    "RuleState",
    "UpdateRule",
    "clip_by_norm",
    "clip_by_value",
]
