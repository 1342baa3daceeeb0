"""The tasks of a batch spread over several processes, on one machine or many."""

from odeopt.outer.workers.gradient import spread
from odeopt.outer.workers.merging import Part, agreed, merge
from odeopt.outer.workers.share import Share
from odeopt.outer.workers.workers import Workers

__all__ = [
    "Part",
    "Share",
    "Workers",
    "agreed",
    "merge",
    "spread",
]
