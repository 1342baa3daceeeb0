"""What people build on a differentiable solve: meta-learning, bilevel problems, loops, workers."""

from odeopt.outer.bilevel import BilevelProblem, Minimized
from odeopt.outer.learner import MetaLearner
from odeopt.outer.loop.recorded import LoopGrads, LoopResult, RecordedLoop
from odeopt.outer.loop.translations import register_optimizer
from odeopt.outer.method import (
    InnerLoop,
    MetaGradient,
    MetaGrads,
    Method,
    TaskBatch,
    TaskHorizon,
    TaskPool,
)
from odeopt.outer.metrics import Step, tensorboard
from odeopt.outer.outer_loop import OuterGradient, OuterLoop, OuterObjective

__all__ = [
    "BilevelProblem",
    "InnerLoop",
    "LoopGrads",
    "LoopResult",
    "MetaGradient",
    "MetaGrads",
    "MetaLearner",
    "Method",
    "Minimized",
    "OuterGradient",
    "OuterLoop",
    "OuterObjective",
    "RecordedLoop",
    "Step",
    "TaskBatch",
    "TaskHorizon",
    "TaskPool",
    "register_optimizer",
    "tensorboard",
]
