"""Bilevel problems: a recorded training loop of one's own, or a problem put together."""

from odeopt.bilevel.loop import LoopGrads, LoopResult, RecordedLoop
from odeopt.bilevel.problem import BilevelProblem, Minimized

__all__ = ["BilevelProblem", "LoopGrads", "LoopResult", "Minimized", "RecordedLoop"]
