"""Saved tensors that are kept in another way than an optimizer keeps its own: through NumPy's arrays, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fusedopt.conversion import converted, storage_keys
from fusedopt.rules.rule import Rule
from fusedopt.storage import BLOCK, SMALL
from fusedopt.stored_arrays import StoredArray, stored_arrays
from fusedopt.torch.storages import TYPES, is_scale, scale_shape, shared_as, size_in_blocks
from fusedopt.torch.tensors import DTYPES, has_order, in_order, is_plain, local, memory_order, storable

Array = np.ndarray[Any, Any]


def stored_beside(rule: Rule, parameter: torch.Tensor, entry: Mapping[str, Any]) -> dict[str, StoredArray]:
    """All that may be kept beside a parameter, by key, as `fusedopt.stored_arrays` has it.

    Args:
        rule: With the options of the parameter's group.
        entry: A state that is to be kept: where the options leave a state's dtype open, it stays as it is there.
    """
    size = SMALL if size_in_blocks(parameter) >= SMALL else 0  # of a part that is here there may be less
    stored = stored_arrays(rule, DTYPES[parameter.dtype], size)
    for state in rule.all_states():
        there = entry.get(state.name)
        left_open = rule.state_dtype_of(state.name) is None
        if left_open and isinstance(there, torch.Tensor) and storable(there.dtype, parameter.dtype):
            ours, dtype = stored[state.name], DTYPES[there.dtype]
            kept = dataclasses.replace(ours.kept, dtype=dtype)
            stored[state.name] = dataclasses.replace(ours, dtype=dtype, kept=kept)
    return stored


def check_codes(what: str, entry: Mapping[str, Any], rule: Rule, parameter: torch.Tensor) -> None:
    """Raise ValueError for 8-bit codes whose blocks no part of the parameter has whole, so that none can be read."""
    if is_plain(type(parameter)) or size_in_blocks(parameter):
        return
    for name in (state.name for state in rule.all_states()):
        if getattr(entry.get(name), "dtype", None) == torch.uint8:
            raise ValueError(
                f"{what} has {name!r} in 8 bits, in blocks of {BLOCK} elements, which do not lie whole in the parts of "
                f"this {type(parameter).__name__}; read it over plain tensors first, by an optimizer with "
                f"state_dtype='float32' and load_state_dict(state, convert=True), and load what that saves likewise."
            )


def converted_entry(
    what: str, entry: Mapping[str, Any], rule: Rule, parameter: torch.Tensor, stored: Mapping[str, StoredArray]
) -> tuple[dict[str, Any], torch.Tensor | None]:
    """A parameter's saved state, of the right shapes, as it is to be kept; and the values that its part here has then.

    Raises:
        ValueError, TypeError: As `fusedopt.conversion.converted`.
    """
    keys = {*storage_keys(rule), *(state.name for state in rule.all_states())} & entry.keys()
    here = {key: local(entry[key]).cpu() for key in keys}
    codes = [tensor for tensor in here.values() if tensor.dtype == torch.uint8]
    order = memory_order(codes[0] if codes else local(parameter))  # in which the blocks of codes follow one another
    arrays = {k: _flat(t, t.contiguous().stride() if is_scale(rule, k) else order) for k, t in here.items()}
    data = _flat(local(parameter).detach().cpu(), order)
    found, moved = converted(what, {**entry, **arrays}, rule, data, stored)
    for key in found.keys() & {*stored, *keys}:
        same = found[key] is arrays.get(key)
        found[key] = entry[key] if same else _like(parameter, key, found[key], order, is_scale(rule, key))
    return found, None if moved is None else _tensor(moved, local(parameter).shape, order)


def _flat(tensor: torch.Tensor, order: tuple[int, ...]) -> Array:
    """A tensor's elements as NumPy has them, as they lie in this order."""
    placed = tensor if has_order(tensor, order) else in_order(tensor, order)
    line = placed.as_strided((placed.numel(),), (1,))
    if line.dtype == torch.bfloat16:
        halves: Array = line.view(torch.int16).numpy().view("bfloat16")
        return halves
    array: Array = line.numpy()
    return array


def _tensor(array: Array, shape: torch.Size, order: tuple[int, ...]) -> torch.Tensor:
    """The other way."""
    bits = torch.from_numpy(array.view(np.int16) if array.dtype.name == "bfloat16" else array)
    return bits.view(TYPES[array.dtype.name]).as_strided(shape, order)


def _like(parameter: torch.Tensor, key: str, array: Array, order: tuple[int, ...], scale: bool) -> torch.Tensor:
    """What is kept under a key, shared as the parameter is."""
    here, whole = local(parameter), tuple(parameter.shape)
    if scale:
        whole = scale_shape(parameter)
        shape = whole if here is parameter else (here.shape[0], whole[1])
        part = torch.from_numpy(array).reshape(shape)
    else:
        part = _tensor(array, here.shape, order)
    return part if is_plain(type(parameter)) else shared_as(parameter, part.to(here.device), whole)
