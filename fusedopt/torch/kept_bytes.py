"""What is kept for a tensor: the same kinds of bytes as over arrays; of a DTensor, those of this process's part."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from fusedopt.kept_bytes import KeptBytes
from fusedopt.rules.rule import Rule
from fusedopt.storage import memory_of
from fusedopt.torch.storages import storage_beside
from fusedopt.torch.tensors import DTYPES, local


def bytes_of(tensor: torch.Tensor) -> int:
    """Of the elements that are here; of a sparse tensor, of its indices and values."""
    here = local(tensor)
    if here.layout == torch.sparse_coo:
        return bytes_of(here._indices()) + bytes_of(here._values())
    return here.numel() * here.element_size()


def of_tensor(p: torch.Tensor) -> KeptBytes:
    """A parameter, and its gradient where it is trained: the one that is there, or one like the parameter.

    Raises:
        ValueError: It has no shape yet.
    """
    if torch.nn.parameter.is_lazy(p):
        raise ValueError("memory: a parameter has no shape yet; take a forward pass through its lazy module first.")
    found = KeptBytes(elements=local(p).numel(), parameters=bytes_of(p))
    if p.grad is None and not p.requires_grad:
        return found
    return dataclasses.replace(found, gradients=bytes_of(p if p.grad is None else p.grad))


def of_launched(p: torch.Tensor, entry: Mapping[str, Any], rule: Rule) -> KeptBytes:
    """What a launch needs of a parameter.

    Args:
        entry: Its state so far; what is in it is counted as it is.
        rule: With its group's options.

    Raises:
        ValueError: It has no shape yet, or a dtype that no launch takes.
    """
    found = of_tensor(p)
    if not found.gradients and not p.requires_grad:
        return found
    if p.dtype not in DTYPES:
        raise ValueError(f"memory: a parameter has {p.dtype}, which is not one of {', '.join(DTYPES.values())}.")
    gradient = p.dtype if p.grad is None or p.grad.dtype not in DTYPES else p.grad.dtype
    kinds = memory_of(storage_beside(rule, p, gradient, entry), local(p).numel())
    beside = {name: kinds[name] for name in ("masters", "states", "scales")}
    return dataclasses.replace(found, **beside, counters=8 * (2 + len(rule.scalar_state)))
