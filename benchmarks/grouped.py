"""An Adam whose tensors are dealt to many param groups: what `fusedopt.cli.bench` has not, whose peers have one."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import fusedopt
from fusedopt.cli.bench.peers import Peer
from fusedopt.cli.bench.peers_arrays import library_of, module_of
from fusedopt.cli.bench.peers_torch import torch_module

# The module of the class, and what it is told beside the groups.
TORCH: dict[str, tuple[str, dict[str, bool]]] = {
    "fusedopt.torch": ("fusedopt.torch", {}),
    "torch fused": ("torch.optim", {"fused": True}),
    "torch foreach": ("torch.optim", {"foreach": True}),
}


def dealt(parameters: Sequence[Any], groups: int) -> list[dict[str, Any]]:
    """Param groups of neighbours, as many in each."""
    each = -(-len(parameters) // groups)
    return [{"params": list(parameters[start : start + each])} for start in range(0, len(parameters), each)]


def in_groups(title: str, weights: Sequence[Any], gradients: Sequence[Any], device: str, groups: int) -> Peer:
    """One of fusedopt, fusedopt.torch and torch's ways, in so many groups."""
    if title in TORCH:
        return _of_torch(title, weights, gradients, device, groups)
    xp = module_of(device)
    parameters = [fusedopt.Parameter(xp.array(array)) for array in weights]
    optimizer = fusedopt.Adam(dealt(parameters, groups))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = xp.asarray(gradient)
    return Peer(optimizer.step, list, lambda: 0, library_of(device))


def _of_torch(title: str, weights: Sequence[Any], gradients: Sequence[Any], device: str, groups: int) -> Peer:
    torch = torch_module()
    parameters = [torch.nn.Parameter(torch.tensor(array, device=device)) for array in weights]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient, device=device)
    module, told = TORCH[title]
    optimizer = importlib.import_module(module).Adam(dealt(parameters, groups), **told)
    return Peer(optimizer.step, list, lambda: 0, "torch")
