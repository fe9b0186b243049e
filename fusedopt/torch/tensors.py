"""What a tensor is to a kernel: a dense piece of memory, at an address, of one of four types."""

from __future__ import annotations

import functools
from typing import Any

import torch

# For what torch.compile shall leave alone. (torch.compiler.disable would import the compiler here: a second.)
untraced = torch._disable_dynamo  # type: ignore[attr-defined]

DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@functools.cache
def is_plain(kind: type) -> bool:
    """Whether tensors of this type have elements of their own, rather than stand for others, as DTensors do."""
    return bool(kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__)  # type: ignore[attr-defined]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a DTensor that this process has; any other tensor as it is."""
    if is_plain(type(tensor)):
        return tensor
    part: torch.Tensor = getattr(tensor, "_local_tensor", tensor)  # to_local() would be recorded for a backward pass
    return part


def placements(tensor: torch.Tensor) -> Any:
    """How a DTensor is shared among processes; None for any other tensor."""
    return getattr(tensor, "placements", None)


def number_of(value: Any) -> Any:
    """A one-element tensor as a Python number, for which its device is waited for; anything else as it is."""
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def memory_order(tensor: torch.Tensor) -> tuple[int, ...]:
    """The strides that a new tensor like this one has: its own, where its elements fill their memory once each."""
    if tensor.is_contiguous():
        return tensor.stride()
    return torch.empty_like(tensor, device="meta", memory_format=torch.preserve_format).stride()


def has_order(tensor: torch.Tensor, strides: tuple[int, ...]) -> bool:
    """Whether a tensor's elements lie in memory as in a tensor of its shape with these strides."""
    own = tensor.stride()
    if own == strides or tensor.numel() < 2:
        return True
    return all(n == 1 or a == b for n, a, b in zip(tensor.shape, own, strides))


def has_rows(tensor: torch.Tensor, strides: tuple[int, ...]) -> bool:
    """Whether each slice of it along the first axis is one piece of memory with these strides."""
    rows = tensor.shape[0]
    return rows < 2 or tensor.numel() == 0 or strides[0] * rows == tensor.numel()


def in_order(tensor: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """A copy whose elements lie in memory in this order."""
    copy = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor)


def storable(dtype: torch.dtype, parameter: torch.dtype) -> bool:
    """Whether a gradient or a state may have this dtype: not float64 beside less, nor half precision beside float64."""
    if parameter == torch.float64:
        return dtype in (torch.float64, torch.float32)
    return dtype in DTYPES and dtype != torch.float64
