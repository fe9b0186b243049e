"""What holds for each tensor of a step: a kind, a place and a dtype that kernels take."""

from __future__ import annotations

import torch

from fusedopt.torch.tensors import DTYPES, is_plain, storable


def check_tensor(what: str, tensor: torch.Tensor, which: str) -> None:
    """Raise RuntimeError for a tensor that no kernel takes.

    Args:
        what: Its parameter, as messages call it.
        which: The tensor: "it", "its gradient".
    """
    if not is_plain(type(tensor)):
        kind = type(tensor)
        raise RuntimeError(
            f"{what}: {which} is a {kind.__module__}.{kind.__qualname__}; fusedopt.torch updates plain tensors, and "
            f"DTensors of them."
        )
    if tensor.layout != torch.strided:
        raise RuntimeError(
            f"{what}: this optimizer does not support sparse gradients; give it to SparseAdam or LazyAdam, or use a "
            f"dense gradient, as Embedding(sparse=False) makes, or gradient.to_dense()."
        )
    if tensor.is_complex():
        raise RuntimeError(f"{what}: {which} is complex, which is not supported; use torch.view_as_real.")
    if tensor.dtype not in DTYPES:
        names = ", ".join(DTYPES.values())
        raise RuntimeError(f"{what}: {which} has {tensor.dtype}, not one of {names}; convert it.")
    if tensor.device.type == "meta":
        raise RuntimeError(f"{what}: {which} is on the meta device and has no values; materialize it first.")


def check_place(
    what: str, tensor: torch.Tensor, which: str, parameter: torch.Tensor, shape: tuple[int, ...] | None = None
) -> None:
    """Raise RuntimeError for a tensor that is elsewhere than its parameter, or of another shape than this one.

    Args:
        shape: That of the scales of 8-bit states; None: the parameter's.
    """
    if tensor.device != parameter.device:
        raise RuntimeError(f"{what} is on {parameter.device} and {which} on {tensor.device}; move both to one device.")
    right = tuple(parameter.shape) if shape is None else shape
    if tuple(tensor.shape) != right:
        theirs = "the parameter" if shape is None else "its scales"
        raise RuntimeError(f"{what}: {which} has shape {tuple(tensor.shape)} and {theirs} {right}; they must be equal.")


def check_beside(what: str, tensor: torch.Tensor, which: str, parameter: torch.Tensor) -> None:
    """Raise RuntimeError for a gradient, or a state of any dtype, that does not go with its parameter."""
    check_tensor(what, tensor, which)
    check_place(what, tensor, which, parameter)
    if not storable(tensor.dtype, parameter.dtype):
        wide = parameter.dtype == torch.float64
        taken = "float32 or float64" if wide else "float32, float16 or bfloat16"
        raise RuntimeError(
            f"{what} has {parameter.dtype} and {which} {tensor.dtype}, where it may have {taken}; convert one of them."
        )
