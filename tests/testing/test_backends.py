"""What the conformance suite of compile backends finds out."""

from __future__ import annotations

import copy

import pytest
import torch

from odeopt.engine.compile import Backend, Trace
from odeopt.testing import check_backend


class Copies(Backend):
    """Does not see what becomes of captured tensors."""

    def compile(self, graph, inputs):
        return copy.deepcopy(graph)


class Frozen(Backend):
    """Gives again what came out when it was recorded."""

    def compile(self, graph, inputs):
        results = graph(*inputs)
        return lambda *others: results


class Buffers(Backend):
    """Gives results in the same memory each time."""

    def compile(self, graph, inputs):
        out = [x.clone() for x in graph(*inputs)]

        def run(*others):
            for own, found in zip(out, graph(*others), strict=True):
                own.copy_(found)
            return out

        return run


class Overwrites(Backend):
    """Uses the memory of its first input."""

    def compile(self, graph, inputs):
        def run(*others):
            found = [x.clone() for x in graph(*others)]
            others[0].zero_()
            return found

        return run


class Changed(Backend):
    """Does something to the results."""

    def __init__(self, change):
        self.change = change

    def compile(self, graph, inputs):
        return lambda *others: self.change(list(graph(*others)))


WRONG = {
    "once captured tensors have been changed": Copies(),
    "result 0 for other inputs": Frozen(),
    "have been changed by the next call": Buffers(),
    r"the inputs \[0\] have been changed": Overwrites(),
    "6 results, expected 7": Changed(lambda found: found[:-1]),
    r"result 0 .* has .*float16": Changed(lambda found: [x.half() for x in found]),
    "result 0 for the inputs": Changed(lambda found: [x * (1 + 1e-3) for x in found]),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_found(message, device):
    with pytest.raises(AssertionError, match=message):
        check_backend(WRONG[message], device)


def test_results_that_agree_to_rounding_pass(device):
    eps = torch.finfo(torch.float64).eps
    check_backend(Changed(lambda found: [x * (1 + eps) for x in found]), device)
    check_backend(Trace(), device)
