"""Tiers: where kept states are."""

from odeopt.store.base import JournalSettings, Shelf, Tier, check_tier
from odeopt.store.device import Device
from odeopt.store.disk import Disk
from odeopt.store.host import Host
from odeopt.store.packing import Packing, pack

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
