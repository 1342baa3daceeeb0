"""The C library keeps what a sweep has freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes
import sys
from odeopt.heap import keep_freed_heap

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] == "keep":
    keep_freed_heap()
blocks = [libc.malloc(100_000) for _ in range(500)]
end = libc.sbrk(0)
for block in reversed(blocks):
    libc.free(block)
print(end - libc.sbrk(0))
"""


def given_back(mode: str) -> int:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True
    )
    return int(found.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the thresholds are those of glibc")
def test_memory_freed_by_a_sweep_is_not_asked_for_again():
    assert given_back("leave") > 20e6
    assert given_back("keep") == 0
