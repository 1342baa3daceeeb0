"""The updates of torch.optim, written from its documentation; autograd can follow them."""

import torch


def sgd(g, u, slot, k, lr, o):
    g = g + o.get("weight_decay", 0) * u
    momentum = o.get("momentum", 0)
    if not isinstance(momentum, torch.Tensor) and momentum == 0:
        return u - lr * g, slot
    buffer = g if "b" not in slot else momentum * slot["b"] + (1 - o.get("dampening", 0)) * g
    return u - lr * (g + momentum * buffer if o.get("nesterov") else buffer), {"b": buffer}


def weigh(g, u, lr, o):
    """The gradient and the parameters with either kind of weight decay."""
    if o.get("decoupled_weight_decay"):
        return g, u * (1 - lr * o.get("weight_decay", 0))
    return g + o.get("weight_decay", 0) * u, u


def moments(g, slot, o):
    beta1, beta2 = o.get("betas", (0.9, 0.999))
    m = beta1 * slot.get("m", 0) + (1 - beta1) * g
    return m, beta2 * slot.get("v", 0) + (1 - beta2) * g * g


def adam(g, u, slot, k, lr, o):
    beta1, beta2 = o.get("betas", (0.9, 0.999))
    g, u = weigh(g, u, lr, o)
    m, v = moments(g, slot, o)
    top = torch.maximum(slot.get("top", torch.zeros_like(v)), v) if o.get("amsgrad") else v
    scale = (top / (1 - beta2 ** (k + 1))).sqrt() + o.get("eps", 1e-8)
    return u - lr * m / (1 - beta1 ** (k + 1)) / scale, {"m": m, "v": v, "top": top}


def adamw(g, u, slot, k, lr, o):
    return adam(g, u, slot, k, lr, {"decoupled_weight_decay": True, "weight_decay": 0.01, **o})


def rmsprop(g, u, slot, k, lr, o):
    g = g + o.get("weight_decay", 0) * u
    rho = o.get("alpha", 0.99)
    v = rho * slot.get("v", 0) + (1 - rho) * g * g
    m = rho * slot.get("m", 0) + (1 - rho) * g
    spread = (v - m * m if o.get("centered") else v).sqrt() + o.get("eps", 1e-8)
    b = o.get("momentum", 0) * slot.get("b", 0) + g / spread
    return u - lr * b, {"v": v, "m": m, "b": b}


def adagrad(g, u, slot, k, lr, o):
    g = g + o.get("weight_decay", 0) * u
    total = slot.get("sum", o.get("initial_accumulator_value", 0)) + g * g
    rate = lr / (1 + k * o.get("lr_decay", 0))
    return u - rate * g / (total.sqrt() + o.get("eps", 1e-10)), {"sum": total}


def nadam(g, u, slot, k, lr, o):
    beta1, beta2 = o.get("betas", (0.9, 0.999))
    g, u = weigh(g, u, lr, o)
    m, v = moments(g, slot, o)
    mu = [
        beta1 * (1 - 0.96 ** (step * o.get("momentum_decay", 4e-3)) / 2) for step in range(1, k + 3)
    ]
    now = torch.tensor(mu[:-1]).prod()
    look = (1 - mu[-2]) * g / (1 - now) + mu[-1] * m / (1 - now * mu[-1])
    scale = (v / (1 - beta2 ** (k + 1))).sqrt() + o.get("eps", 1e-8)
    return u - lr * look / scale, {"m": m, "v": v}


def radam(g, u, slot, k, lr, o):
    beta1, beta2 = o.get("betas", (0.9, 0.999))
    g, u = weigh(g, u, lr, o)
    m, v = moments(g, slot, o)
    bias = 1 - beta2 ** (k + 1)
    most = 2 / (1 - beta2) - 1
    length = most - 2 * (k + 1) * beta2 ** (k + 1) / bias
    look = lr * m / (1 - beta1 ** (k + 1))
    if length > 5:
        part = (length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)
        look = look * (part * bias) ** 0.5 / (v.sqrt() + o.get("eps", 1e-8))
    return u - look, {"m": m, "v": v}


def adamax(g, u, slot, k, lr, o):
    beta1, beta2 = o.get("betas", (0.9, 0.999))
    g = g + o.get("weight_decay", 0) * u
    m, _ = moments(g, slot, o)
    now = g.abs() + o.get("eps", 1e-8)
    top = torch.maximum(beta2 * slot["top"], now) if "top" in slot else now
    return u - lr / (1 - beta1 ** (k + 1)) * m / top, {"m": m, "top": top}


def adadelta(g, u, slot, k, lr, o):
    rho, eps = o.get("rho", 0.9), o.get("eps", 1e-6)
    g = g + o.get("weight_decay", 0) * u
    v = rho * slot.get("v", 0) + (1 - rho) * g * g
    before = slot.get("d", torch.zeros_like(v))
    move = (before + eps).sqrt() / (v + eps).sqrt() * g
    return u - lr * move, {"v": v, "d": rho * before + (1 - rho) * move * move}


def asgd(g, u, slot, k, lr, o):
    lambd = o.get("lambd", 1e-4)
    g = g + o.get("weight_decay", 0) * u
    lr = lr * torch.ones_like(u)
    eta = slot.get("eta", lr)
    after = lr / (1 + lambd * lr * (k + 1)) ** o.get("alpha", 0.75)
    return u * (1 - lambd * eta) - eta * g, {"eta": after}


def rprop(g, u, slot, k, lr, o):
    (shrink, grow), (least, most) = o.get("etas", (0.5, 1.2)), o.get("step_sizes", (1e-6, 50.0))
    sign = (g * slot.get("g", torch.zeros_like(g))).sign()
    factor = torch.ones_like(g)
    factor[sign > 0], factor[sign < 0] = grow, shrink
    size = (slot.get("size", lr * torch.ones_like(g)) * factor).clamp(least, most)
    g = g * (sign >= 0)
    return u - size * g.sign(), {"size": size, "g": g}


UPDATES = {
    "SGD": sgd, "Adam": adam, "AdamW": adamw, "RMSprop": rmsprop, "Adagrad": adagrad,
    "NAdam": nadam, "RAdam": radam, "Adamax": adamax, "Adadelta": adadelta, "ASGD": asgd,
    "Rprop": rprop,
}  # fmt: skip
