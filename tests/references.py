"""Optimizers that torch lacks, each as its paper's equations written out for torch: slow, plain, and not ours."""

from collections.abc import Callable
from typing import Any

import torch


def written_out(
    name: str,
    defaults: dict[str, Any],
    update: Callable[..., torch.Tensor],
    check: Callable[[dict[str, Any]], None] = lambda options: None,
) -> type[torch.optim.Optimizer]:
    """An optimizer of torch.

    Args:
        defaults: Its options, with `maximize` or without.
        update: (p, g, state, step, options) -> the new parameter; it makes and changes the state itself.
        check: Raises ValueError for options that do not go together.
    """

    class WrittenOut(torch.optim.Optimizer):
        def __init__(self, params: Any, **options: Any) -> None:
            check(defaults | options)
            super().__init__(params, defaults | options)

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    state = self.state[p]
                    state["step"] = state.get("step", torch.tensor(0.0)) + 1
                    g = -p.grad if group.get("maximize") else p.grad
                    p.copy_(update(p, g, state, state["step"].item(), group))

    WrittenOut.__name__ = name
    return WrittenOut


def _lion(p: Any, g: Any, state: dict[str, Any], step: float, options: dict[str, Any]) -> torch.Tensor:
    (beta1, beta2), m = options["betas"], state.setdefault("exp_avg", torch.zeros_like(p))
    p = p * (1 - options["lr"] * options["weight_decay"])
    p = p - options["lr"] * torch.sign(beta1 * m + (1 - beta1) * g)
    state["exp_avg"] = beta2 * m + (1 - beta2) * g
    return p


Lion = written_out("Lion", {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "maximize": False}, _lion)


def _lamb(p: Any, g: Any, state: dict[str, Any], step: float, options: dict[str, Any]) -> torch.Tensor:
    (beta1, beta2), decay = options["betas"], options["weight_decay"]
    m = state["exp_avg"] = beta1 * state.get("exp_avg", torch.zeros_like(p)) + (1 - beta1) * g
    v = state["exp_avg_sq"] = beta2 * state.get("exp_avg_sq", torch.zeros_like(p)) + (1 - beta2) * g**2
    if options["bias_correction"]:
        m, v = m / (1 - beta1**step), v / (1 - beta2**step)
    u = m / (v.sqrt() + options["eps"]) + decay * p
    adapts = (decay != 0 or options["always_adapt"]) and p.norm() > 0 and u.norm() > 0
    return p - options["lr"] * (p.norm() / u.norm() if adapts else 1.0) * u


LAMB = written_out(
    "LAMB",
    {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.01,
        "bias_correction": True,
        "always_adapt": False,
        "maximize": False,
    },
    _lamb,
)


def _lars(p: Any, g: Any, state: dict[str, Any], step: float, options: dict[str, Any]) -> torch.Tensor:
    lr, decay, momentum, ratio = options["lr"], options["weight_decay"], options["momentum"], 1.0
    if options["adapt"]:
        if p.norm() > 0 and g.norm() > 0:
            ratio = options["trust_coefficient"] * p.norm() / (g.norm() + decay * p.norm() + options["eps"])
        ratio = min(ratio / lr, 1.0) if options["trust_clip"] and lr else ratio
    d = ratio * (g + decay * p)
    if momentum:
        first = "momentum_buffer" not in state
        b = d if first else momentum * state["momentum_buffer"] + (1 - options["dampening"]) * d
        state["momentum_buffer"] = b
        d = d + momentum * b if options["nesterov"] else b
    return p - lr * d


def _check_nesterov(options: dict[str, Any]) -> None:
    if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
        raise ValueError("Nesterov momentum requires a momentum and zero dampening")


LARS = written_out(
    "LARS",
    {
        "lr": 1e-3,
        "momentum": 0.9,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
        "trust_coefficient": 1e-3,
        "eps": 0.0,
        "trust_clip": False,
        "adapt": True,
        "maximize": False,
    },
    _lars,
    _check_nesterov,
)


def _momentum(p: Any, g: Any, state: dict[str, Any], step: float, options: dict[str, Any]) -> torch.Tensor:
    lr, mu = options["lr"], options["momentum"]
    g = g + options["weight_decay"] * p
    v = state["moments"] = mu * state.get("moments", torch.zeros_like(p)) + g
    return p - (g * lr + v * mu * lr) if options["nesterov"] else p - lr * v


Momentum = written_out(
    "Momentum", {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0, "nesterov": False, "maximize": False}, _momentum
)


def _ftrl(p: Any, g: Any, state: dict[str, Any], step: float, options: dict[str, Any]) -> torch.Tensor:
    lr, power, l1, l2 = options["lr"], -options["lr_power"], options["l1"], options["l2"]
    g = g + options["weight_decay"] * p
    n = state.get("moments", torch.full_like(p, options["initial_accumulator_value"]))
    z = state.get("linear", torch.zeros_like(p))
    if "linear" not in state and options.get("linear_init_from_param"):
        z = -p * (n**power / lr + 2 * l2) - l1 * torch.sign(p)
    state["moments"] = n + g**2
    z = state["linear"] = z + g - (state["moments"] ** power - n**power) / lr * p
    return torch.where(z.abs() > l1, (torch.sign(z) * l1 - z) / (state["moments"] ** power / lr + 2 * l2), 0.0)


REGULARIZED = {
    "lr": 1e-3,
    "l1": 0.0,
    "l2": 0.0,
    "initial_accumulator_value": 0.1,
    "weight_decay": 0.0,
    "maximize": False,
}
FTRL = written_out("FTRL", REGULARIZED | {"lr_power": -0.5}, _ftrl)


def _proximal_adagrad(p: Any, g: Any, state: dict[str, Any], step: float, options: dict[str, Any]) -> torch.Tensor:
    lr = options["lr"]
    g = g + options["weight_decay"] * p
    h = state["accum"] = state.get("accum", torch.full_like(p, options["initial_accumulator_value"])) + g**2
    q = p - lr * g / h.sqrt()
    return torch.sign(q) * torch.clamp(q.abs() - lr * options["l1"], min=0) / (1 + lr * options["l2"])


ProximalAdagrad = written_out("ProximalAdagrad", REGULARIZED, _proximal_adagrad)


# --- torch's own, with the options that only ours have: an option that is not given is as torch has it


def _sgd(p: Any, g: Any, state: dict[str, Any], step: float, options: dict[str, Any]) -> torch.Tensor:
    lr, mu = options["lr"], options["momentum"]
    g = lr * (g + options["weight_decay"] * p)
    before = state.get("momentum_buffer")
    b = state["momentum_buffer"] = g if before is None else mu * before + (1 - options["dampening"]) * g
    return p - (g + mu * b if options["nesterov"] else b)


SGD = written_out("SGD", {"dampening": 0.0, "weight_decay": 0.0, "nesterov": False}, _sgd)


def _adam(p: Any, g: Any, state: dict[str, Any], step: float, options: dict[str, Any]) -> torch.Tensor:
    lr, (beta1, beta2), decay = options["lr"], options["betas"], options["weight_decay"]
    p, g = (p - lr * decay * p, g) if options["decoupled"] else (p, g + decay * p)
    m = state["exp_avg"] = beta1 * state.get("exp_avg", torch.zeros_like(p)) + (1 - beta1) * g
    v = state["exp_avg_sq"] = beta2 * state.get("exp_avg_sq", torch.zeros_like(p)) + (1 - beta2) * g**2
    if options.get("amsgrad"):
        v = state["max_exp_avg_sq"] = torch.maximum(v, state.get("max_exp_avg_sq", torch.zeros_like(p)))
    m = beta1 * m + (1 - beta1) * g if options.get("nesterov") else m
    correction1, correction2 = 1 - beta1**step, (1 - beta2**step) ** 0.5
    if not options.get("bias_correction", True):
        correction1 = correction2 = 1.0
    if options.get("corrected_eps", True):
        return p - lr / correction1 * m / (v.sqrt() / correction2 + options["eps"])
    return p - lr * correction2 / correction1 * m / (v.sqrt() + options["eps"])


Adam = written_out("Adam", {"decoupled": False}, _adam)
AdamW = written_out("AdamW", {"decoupled": True}, _adam)


def _rmsprop(p: Any, g: Any, state: dict[str, Any], step: float, options: dict[str, Any]) -> torch.Tensor:
    lr, alpha, eps = options["lr"], options["alpha"], options["eps"]
    g = g + options["weight_decay"] * p
    before = state.get("square_avg", torch.full_like(p, options.get("square_avg_init", 0.0)))
    v = state["square_avg"] = alpha * before + (1 - alpha) * g**2
    if options["centered"]:
        state["grad_avg"] = alpha * state.get("grad_avg", torch.zeros_like(p)) + (1 - alpha) * g
        v = v - state["grad_avg"] ** 2
    d = g / ((v + eps).sqrt() if options.get("eps_inside_sqrt") else v.sqrt() + eps)
    into, out_of = (lr, 1.0) if options.get("lr_in_momentum") else (1.0, lr)
    b = state["momentum_buffer"] = options["momentum"] * state.get("momentum_buffer", torch.zeros_like(p)) + into * d
    return p - out_of * b


RMSprop = written_out("RMSprop", {}, _rmsprop)


def _rprop(p: Any, g: Any, state: dict[str, Any], step: float, options: dict[str, Any]) -> torch.Tensor:
    g = g + options["weight_decay"] * p
    agreement = torch.sign(g) * torch.sign(state.get("prev", torch.zeros_like(p)))
    size = state.get("step_size", torch.full_like(p, options["lr"]))
    size = size * torch.where(agreement > 0, options["etas"][1], torch.where(agreement < 0, options["etas"][0], 1.0))
    size = state["step_size"] = size.clamp(*options["step_sizes"])
    g = state["prev"] = torch.where(agreement < 0, 0.0, g)
    return p - torch.sign(g) * size


Rprop = written_out("Rprop", {"weight_decay": 0.0}, _rprop)
