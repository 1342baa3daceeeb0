"""Meta-learning: methods that give a gradient w.r.t. the initialisation, and the outer loop."""

from odeopt.meta.inner_loop import InnerLoop, TaskHorizon
from odeopt.meta.learner import MetaLearner
from odeopt.meta.method import MetaGradient, MetaGrads, Method, TaskBatch
from odeopt.meta.metrics import Step, tensorboard
from odeopt.meta.pool import TaskPool

__all__ = [
    "InnerLoop",
    "MetaGradient",
    "MetaGrads",
    "MetaLearner",
    "Method",
    "Step",
    "TaskBatch",
    "TaskHorizon",
    "TaskPool",
    "tensorboard",
]
