"""The small transformer and its windows of text."""

from __future__ import annotations

import torch

from benchmarks.problems import transformer
from benchmarks.problems.transformer import Transformer

MODEL = Transformer(len(transformer.ALPHABET), 12, 8, heads=2, blocks=2)


def test_no_character_sees_a_later_one():
    params = MODEL.init(0)
    codes = transformer.windows("train", 1, 10, 0.0, 0).codes.expand(10, -1).clone()
    for place in range(10):
        codes[place, place] = (codes[place, place] + 1) % len(transformer.ALPHABET)
    plain = MODEL.apply(params, transformer.windows("train", 1, 10, 0.0, 0).codes)[0]
    for place, changed in enumerate(MODEL.apply(params, codes)):
        assert torch.allclose(changed[:place], plain[:place], rtol=1e-12, atol=1e-14)
        assert not torch.allclose(changed[place], plain[place])
        assert not torch.allclose(changed[-1], plain[-1])


def test_losses_are_those_of_the_next_characters():
    params = MODEL.init(1)
    codes = transformer.windows("test", 3, 9, 0.0, 0).codes
    found = MODEL.losses(params, codes)
    for index in range(3):
        logs = MODEL.apply(params, codes[index : index + 1, :-1])[0].log_softmax(-1)
        expected = -torch.stack([logs[k, codes[index, k + 1]] for k in range(8)]).mean()
        assert torch.allclose(found[index], expected, rtol=1e-12)


def test_windows_are_text_and_so_many_are_shuffled():
    whole = transformer.corpus("train")
    assert len(whole) > 100_000
    assert int(whole.max()) < len(transformer.ALPHABET)
    found, same = (transformer.windows("train", 20, 15, share, 3) for share in (0.25, 0.0))
    assert int(found.shuffled.sum()) == 5
    assert torch.equal(found.codes[~found.shuffled], same.codes[~found.shuffled])
    assert torch.equal(found.codes.sort(-1).values, same.codes.sort(-1).values)
    assert not torch.equal(found.codes, same.codes)
    readable = "".join(transformer.ALPHABET[code] for code in whole[:2000])
    assert " the " in readable
