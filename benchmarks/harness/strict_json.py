"""Strict JSON in which non-finite floats survive a round trip.

JSON has no NaN or infinity. They are written as `{"$nonfinite": "nan"}`, with "nan", "inf"
or "-inf", so that no ordinary string can be mistaken for one.
"""

from __future__ import annotations

import json
import math
from typing import Any

_MARK = "$nonfinite"
_NONFINITE = ("nan", "inf", "-inf")


def dumps(value: Any) -> str:
    """Serialise plain data: dictionaries with string keys, lists, strings, numbers, None.

    Tuples become lists.

    Returns:
        Indented JSON with sorted keys and a final newline.

    Raises:
        TypeError: The data holds something else, e.g. a tensor or a key that is no string.
    """
    return json.dumps(_encode(value), allow_nan=False, indent=2, sort_keys=True) + "\n"


def loads(text: str | bytes) -> Any:
    """Read what `dumps` wrote.

    Raises:
        ValueError: The text is not valid strict JSON.
    """
    return json.loads(text, object_hook=_decode, parse_constant=_reject)


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_MARK: str(float(value))}
    if isinstance(value, dict):
        return {_checked_key(key): _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def _checked_key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a result's keys must be strings, got {key!r}")
    if key == _MARK:
        raise TypeError(f"the key {_MARK!r} is reserved for NaN and infinity")
    return key


def _decode(node: dict[str, Any]) -> Any:
    if set(node) != {_MARK}:
        return node
    if node[_MARK] not in _NONFINITE:
        raise ValueError(f"{node[_MARK]!r} is no non-finite number")
    return float(node[_MARK])


def _reject(constant: str) -> float:
    raise ValueError(f"{constant} is not valid JSON")
