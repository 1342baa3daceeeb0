"""What people build on a differentiable solve: meta-learning, bilevel problems, loops, workers."""

from odeopt.outer.bilevel import BilevelProblem, Minimized
from odeopt.outer.inner_loop import InnerLoop, TaskHorizon
from odeopt.outer.learner import MetaLearner
from odeopt.outer.loop.recorded import LoopGrads, LoopResult, RecordedLoop
from odeopt.outer.method import MetaGradient, MetaGrads, Method, TaskBatch
from odeopt.outer.metrics import Step, tensorboard
from odeopt.outer.outer_loop import OuterGradient, OuterLoop, OuterObjective
from odeopt.outer.task_pool import TaskPool

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
    "tensorboard",
]
