"""Numbers whose rounding would spoil a gradient without a sign are refused by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odeopt.errors import CapturedTensorError, InputError


def refuse_autocast(device: torch.device) -> None:
    """Raise if autocast is active for a device.

    A backward sweep multiplies thousands of Jacobians; what half precision does to that product
    has not been measured, so that it is not offered.

    Raises:
        InputError: if it is.
    """
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
        raise InputError(
            f"autocast to {dtype} is active for {device.type}, but a solve and its backward sweep"
            " run in float32 or float64: mixed precision may give a wrong gradient without a sign."
            f" Leave the block, or wrap the call in torch.autocast('{device.type}', enabled=False)."
        )


def check_dtypes(differentiable: Sequence[Tensor], data: Sequence[Tensor]) -> None:
    """Raise on inputs whose gradient would be inexact or lost.

    Args:
        differentiable: floating-point inputs, e.g. hparams; half precision is refused.
        data: other tensors; none may require grad, as a complex one could.

    Raises:
        InputError: on a differentiable tensor of less than float32.
        CapturedTensorError: on a complex tensor that requires grad.
    """
    for leaf in differentiable:
        if leaf.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"hparams or the batch hold a differentiable tensor of dtype {leaf.dtype};"
                " expected torch.float32 or torch.float64. Convert it with .float()."
            )
    for leaf in data:
        if leaf.is_complex() and leaf.requires_grad:
            raise CapturedTensorError(
                f"a tensor of dtype {leaf.dtype} requires grad, but only real tensors are"
                " differentiated: pass torch.view_as_real(x), or detach it."
            )
