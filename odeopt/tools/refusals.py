"""What torch refuses to differentiate, in words that say what to do."""

from __future__ import annotations

import re

from odeopt.errors import CompatibilityError

_REFUSALS = {
    r"requires_grad_\(\)|element 0 of tensors does not require grad": (
        "the loss (or velocity) takes a derivative with requires_grad_() or"
        " torch.autograd.functional, which does not work inside of another: take it with"
        " torch.func.grad(f)(x), jacrev or jvp."
    ),
    r"retain_grad\(\)": (
        "the loss calls retain_grad(), but it leaves no graph: take the gradient with"
        " torch.func.grad(f)(x)."
    ),
    r"backward\(\) called inside": (
        "the loss calls backward(): return its value, which is differentiated for you, and take"
        " derivatives inside it with torch.func.grad(f)(x)."
    ),
    r"saved tensor hooks": (
        "there is a hook on saved tensors (torch.utils.checkpoint in the model, save_on_cpu or"
        " save_for_backward hooks around the call): leave it out. checkpoints= says what is"
        " kept; with Every(1) or Binomial(n) only the graph of one step is alive at a time."
    ),
    r"must override the setup_context": (
        "the loss uses a torch.autograd.Function without setup_context (as torch.utils.checkpoint"
        " with use_reentrant=True is): write its forward without ctx, and a"
        " setup_context(ctx, inputs, output) beside it."
    ),
    r"You tried to vmap over (\w+)": (
        "tasks are batched with torch.func.vmap, for which the torch.autograd.Function {0} has no"
        " rule: set generate_vmap_rule = True in it."
    ),
    r"derivative for '?(\S*(?:attention|attn)\S*?)'? is not implemented": (
        "torch has no second derivative of {0}, a fused kernel that the loss has chosen: choose"
        " torch.nn.attention.sdpa_kernel(SDPBackend.MATH) there, or FirstOrderAdjoint()."
    ),
    r"derivative for '?(\S+?)'? is not implemented": (
        "torch has no second derivative of {0}, which the gradient through a step needs: write"
        " that operation out with others, or use FirstOrderAdjoint()."
    ),
    r"mutating directly with `\.data`": (
        "the loss assigns to .data of a tensor that is being differentiated: compute a new tensor."
    ),
    r"modified inplace|modified by an inplace|in-place operation|^vmap: inplace": (
        "the loss changes a tensor in place that is one of its arguments or is being"
        " differentiated: compute a new one, e.g. x = x * 2 in place of x.mul_(2) (an embedding"
        " with max_norm changes its weights in place, too)."
    ),
    r"doesn't have storage": (
        "the loss reads the memory of a tensor that is being differentiated (numpy(), or an"
        " operation that torch.func does not know, such as ctc_loss): compute it with operations of"
        " torch, or beforehand, and pass it in the batch."
    ),
    r"^vmap: .*(?:\.item\(\)|data-dependent|dynamic shape)": (
        "tasks are batched with torch.func.vmap, where the course of a loss and its shapes cannot"
        " depend on the numbers in tensors: use torch.where and weights in place of if, item() and"
        " boolean masks, or pass the tasks one by one."
    ),
    r"^vmap: called random operation": (
        "the loss draws random numbers: give each step its own, Stream.constant(batch, seed=0)."
    ),
    r"Sparse(?:CPU|CUDA)|for [Ss]parse tensors": (
        "the loss leads to a sparse tensor where a dense one is needed (nn.Embedding(sparse=True),"
        " sparse parameters): leave sparse out, or call to_dense()."
    ),
    r"[Ii]nference tensor": (
        "the loss uses torch.inference_mode, whose tensors cannot be differentiated with: use"
        " .detach() or torch.no_grad()."
    ),
    r"functorch|torch\.func|vmap|[Bb]atching rule": (
        "the loss (or velocity) does what torch.func cannot differentiate or batch: write that part"
        " with other operations."
    ),
}
"""What the message of an error contains: what was met and what to do. The first that fits is
meant; `{0}` stands for the first group of the pattern."""


def explain(error: RuntimeError) -> CompatibilityError | None:
    """An error of torch in our words; None for one that has nothing to do with derivatives."""
    text = str(error)
    for pattern, advice in _REFUSALS.items():
        match = re.search(pattern, text, re.DOTALL)
        if match:
            first_line = text.strip().splitlines()[0]
            return CompatibilityError(f"{advice.format(*match.groups())} Torch says: {first_line}")
    return None
