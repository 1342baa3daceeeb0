"""Bilevel problems: a recorded training loop of one's own, or a problem put together."""

from odeopt.bilevel.loop import LoopGrads, LoopResult, RecordedLoop

__all__ = ["LoopGrads", "LoopResult", "RecordedLoop"]
