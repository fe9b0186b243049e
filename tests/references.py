"""Optimizers that torch lacks, each as its paper's equations written out for torch: slow, plain, and not ours."""

from collections.abc import Callable
from typing import Any

import torch


def written_out(
    name: str, defaults: dict[str, Any], update: Callable[..., torch.Tensor]
) -> type[torch.optim.Optimizer]:
    """An optimizer of torch.

    Args:
        defaults: Its options, with `maximize` or without.
        update: (p, g, state, step, options) -> the new parameter; it makes and changes the state itself.
    """

    class WrittenOut(torch.optim.Optimizer):
        def __init__(self, params: Any, **options: Any) -> None:
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
