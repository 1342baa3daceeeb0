"""Memory that a sweep has freed stays with the process, since the next one needs it again."""

from __future__ import annotations

from functools import cache

LARGEST = 32 * 2**20
"""The largest block after which glibc moves its thresholds."""

MARGIN = 8192
"""For what an allocator puts around a block."""


@cache
def keep_freed_heap() -> None:
    """Let the C library keep up to 64 MiB of freed memory; once in a process.

    glibc gives the end of the heap back as soon as 128 KiB of it are free. Kept states come and go
    there, so that each sweep would get thousands of pages anew from the system, at more than a
    microsecond each: up to a tenth of the time of a small solve. When a large block is freed glibc
    takes it as a sign that such blocks come and go, and keeps twice its size. The block is never
    touched, so that it takes no memory itself. Other C libraries are not concerned.

    References:
        mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD: how they adapt.
    """
    bytearray(LARGEST - MARGIN)
