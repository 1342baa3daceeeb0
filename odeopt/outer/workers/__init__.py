"""The tasks of a batch spread over several processes, on one machine or many."""

from odeopt.outer.workers.merging import Part, Share, agreed, merge
from odeopt.outer.workers.spreading import spread
from odeopt.outer.workers.workers import Workers

__all__ = [
    "Part",
    "Share",
    "Workers",
    "agreed",
    "merge",
    "spread",
]
