"""Tiers: where kept states are."""

from odeopt.checkpoint.store.base import Device, JournalSettings, Shelf, Tier, check_tier
from odeopt.checkpoint.store.disk import Disk
from odeopt.checkpoint.store.host import Host
from odeopt.tools.packing import Packing, pack

__all__ = [
    "Device",
    "Disk",
    "Host",
    "JournalSettings",
    "Packing",
    "Shelf",
    "Tier",
    "check_tier",
    "pack",
]
