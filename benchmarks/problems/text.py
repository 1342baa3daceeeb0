"""Windows of characters of the reference texts that Python's `help()` shows."""

from __future__ import annotations

from functools import cache
from pydoc_data.topics import topics
from typing import NamedTuple

import torch
from torch import Generator, Tensor

ALPHABET = "\n" + "".join(chr(code) for code in range(32, 127))
"""Other characters become spaces."""


class Windows(NamedTuple):
    """Characters of windows of one length, and which windows had theirs shuffled.

    Attributes:
        codes: Indices into `ALPHABET`, [windows, length].
        shuffled: Booleans, [windows].
    """

    codes: Tensor
    shuffled: Tensor


@cache
def corpus(part: str) -> Tensor:
    """The characters of the topics of a part, "train" or "test" (every fourth), in order."""
    names = sorted(topics)
    chosen = [name for i, name in enumerate(names) if (i % 4 == 3) is (part == "test")]
    known = {character: code for code, character in enumerate(ALPHABET)}
    text = "\n".join(topics[name] for name in chosen)
    return torch.tensor([known.get(character, known[" "]) for character in text])


def windows(part: str, count: int, length: int, share: float, seed: int) -> Windows:
    """Windows at random places, of some of which the characters are shuffled.

    Args:
        part: See `corpus`.
        count: How many.
        length: Characters of each.
        share: Of windows that are shuffled.
        seed: Fixes everything.
    """
    text, generator = corpus(part), Generator().manual_seed(seed)
    starts = torch.randint(len(text) - length, (count,), generator=generator)
    codes = text[starts[:, None] + torch.arange(length)]
    chosen = torch.randperm(count, generator=generator)[: round(share * count)]
    for index in chosen:
        codes[index] = codes[index][torch.randperm(length, generator=generator)]
    shuffled = torch.zeros(count, dtype=torch.bool)
    shuffled[chosen] = True
    return Windows(codes, shuffled)
