"""The tasks of a batch spread over several processes, on one machine or many."""

from odeopt.distributed.gradient import spread
from odeopt.distributed.merging import Part, agreed, merge
from odeopt.distributed.share import Share
from odeopt.distributed.workers import Workers

__all__ = ["Part", "Share", "Workers", "agreed", "merge", "spread"]
