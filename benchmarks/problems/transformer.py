"""A small transformer that predicts the next character, as a pure function of its parameters.

Its texts are windows of the reference that Python's `help()` shows. Attention is written out, since
the second derivative of torch's own is not there on every device.
"""

from __future__ import annotations

import math
from functools import cache
from pydoc_data.topics import topics
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from benchmarks.problems.models import Parameters

ALPHABET = "\n" + "".join(chr(code) for code in range(32, 127))
"""Other characters become spaces."""


class Windows(NamedTuple):
    """Characters of windows of one length, and which windows had theirs shuffled."""

    codes: Tensor  # indices into `ALPHABET`, [windows, length]
    shuffled: Tensor  # booleans, [windows]


@cache
def corpus(part: str) -> Tensor:
    """The characters of the topics of a part, "train" or "test" (every fourth), in order."""
    names = sorted(topics)
    chosen = [name for i, name in enumerate(names) if (i % 4 == 3) is (part == "test")]
    known = {character: code for code, character in enumerate(ALPHABET)}
    text = "\n".join(topics[name] for name in chosen)
    return torch.tensor([known.get(character, known[" "]) for character in text])


def windows(part: str, count: int, length: int, share: float, seed: int) -> Windows:
    """So many windows at random places of a part of the corpus, a share of them shuffled."""
    text, generator = corpus(part), Generator().manual_seed(seed)
    starts = torch.randint(len(text) - length, (count,), generator=generator)
    codes = text[starts[:, None] + torch.arange(length)]
    chosen = torch.randperm(count, generator=generator)[: round(share * count)]
    for index in chosen:
        codes[index] = codes[index][torch.randperm(length, generator=generator)]
    shuffled = torch.zeros(count, dtype=torch.bool)
    shuffled[chosen] = True
    return Windows(codes, shuffled)


LAYERS = ("query", "key", "value", "out", "up", "down")


class Transformer(NamedTuple):
    """Its sizes."""

    symbols: int  # of the alphabet
    length: int  # of the longest window
    width: int  # of a token's features
    heads: int  # of attention, each of width / heads features
    blocks: int  # attention and a perceptron each, behind a layer norm

    def init(self, seed: int) -> Parameters:
        """Random float64 parameters."""
        generator = Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            return drawn / math.sqrt(shape[-1])

        width = self.width
        params = {"token": normal(self.symbols, width), "place": normal(self.length, width)}
        for block in range(self.blocks):
            for name in LAYERS:
                rows = 4 * width if name == "up" else width
                columns = 4 * width if name == "down" else width
                params[f"block{block}.{name}"] = normal(rows, columns)
            for norm in ("norm0", "norm1"):
                params[f"block{block}.{norm}"] = torch.ones(width, dtype=torch.float64)
        return params | {"norm": torch.ones(width, dtype=torch.float64),
                         "head": normal(self.symbols, width)}  # fmt: skip

    def apply(self, params: Parameters, codes: Tensor) -> Tensor:
        """Logits of the next character after each, [n, length, symbols]."""
        x = params["token"][codes] + params["place"][: codes.shape[-1]]
        for block in range(self.blocks):
            own = {name: params[f"block{block}.{name}"] for name in (*LAYERS, "norm0", "norm1")}
            x = x + self._attention(own, _norm(x, own["norm0"]))
            hidden = functional.gelu(functional.linear(_norm(x, own["norm1"]), own["up"]))
            x = x + functional.linear(hidden, own["down"])
        return functional.linear(_norm(x, params["norm"]), params["head"])

    def losses(self, params: Parameters, codes: Tensor) -> Tensor:
        """The mean cross-entropy of the characters of each window but the first, [n]."""
        logits = self.apply(params, codes[:, :-1])
        losses = functional.cross_entropy(logits.mT, codes[:, 1:], reduction="none")
        return losses.mean(-1)

    def _attention(self, own: Parameters, x: Tensor) -> Tensor:
        count, length, _ = x.shape
        query, key, value = (
            functional.linear(x, own[name]).reshape(count, length, self.heads, -1).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        scores = query @ key.mT / math.sqrt(self.width // self.heads)
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(later, float("-inf")).softmax(-1)
        return functional.linear((weights @ value).transpose(1, 2).flatten(-2), own["out"])


def _norm(x: Tensor, scale: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return scale * centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
