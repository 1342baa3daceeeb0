"""Checkpoint schedules: what is remembered between the two sweeps."""

from odeopt.checkpoint.base import (
    Action,
    Advance,
    CheckpointSchedule,
    ForwardStream,
    Free,
    Progress,
    Pull,
    Restore,
    Store,
)
from odeopt.checkpoint.binomial import Binomial
from odeopt.checkpoint.budget import MemoryBudget
from odeopt.checkpoint.graded import Graded
from odeopt.checkpoint.graphs import Graphs, set_memory_budget
from odeopt.checkpoint.online import Online
from odeopt.checkpoint.uniform import Density, Every

__all__ = [
    "Action",
    "Advance",
    "Binomial",
    "CheckpointSchedule",
    "Density",
    "Every",
    "ForwardStream",
    "Free",
    "Graded",
    "Graphs",
    "MemoryBudget",
    "Online",
    "Progress",
    "Pull",
    "Restore",
    "Store",
    "set_memory_budget",
]
