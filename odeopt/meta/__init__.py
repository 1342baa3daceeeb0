"""Meta-learning: methods that give a gradient w.r.t. the initialisation, and the outer loop."""

from odeopt.meta.inner_loop import InnerLoop, TaskHorizon
from odeopt.meta.method import MetaGradient, MetaGrads, Method, TaskBatch

__all__ = ["InnerLoop", "MetaGradient", "MetaGrads", "Method", "TaskBatch", "TaskHorizon"]
