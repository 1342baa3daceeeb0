"""Numbers of bytes as people write them."""

from __future__ import annotations

import re

from odeopt.errors import InputError

_UNITS = {
    "B": 1,
    "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_FORM = re.compile(rf"\s*(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})\s*")


def parse_bytes(value: object, what: str) -> int:
    """A number of bytes from an integer or text such as "512MiB".

    Raises:
        InputError: if it is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _FORM.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise InputError(
            f"{what} is {value!r}; expected a number of bytes, or text with a unit such as"
            f" '512MiB' or '2GB' (units: {', '.join(_UNITS)})."
        )
    return int(float(found[1]) * _UNITS[found[2]])


def format_bytes(count: int) -> str:
    """A number of bytes in the largest binary unit of which it is at least one."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count >= _UNITS[unit]:
            return f"{count / _UNITS[unit]:.4g} {unit}"
    return f"{count} B"
