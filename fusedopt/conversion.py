"""Saved state that is kept in another way than an optimizer keeps its own: told by its arrays, converted where asked.

Arrays are NumPy's, on the host: whoever has others brings them there and back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusedopt.backends import kept as pieces
from fusedopt.eight_bits import CODES, encode_blocks
from fusedopt.parameter import DTYPES
from fusedopt.rules.common_options import STATE_DTYPES
from fusedopt.rules.declaration import State
from fusedopt.rules.rule import Rule
from fusedopt.storage import BESIDE_PARAMETER, HALVES, MASTER, SCALE, Kept, blocks_of, kept_parameter
from fusedopt.stored_arrays import StoredArray, stored_arrays

Array = np.ndarray[Any, Any]
CONVERT = "load_state_dict(state, convert=True)"
# What keeps the rest of a parameter, by the state dict key and dtype of what it keeps.
FINER = {(key, dtype): finer for finer, (key, dtype) in BESIDE_PARAMETER.items()}
PARAMETER_KEYS = dict.fromkeys(key for key, _ in BESIDE_PARAMETER.values()).keys()


def storage_keys(rule: Rule) -> set[str]:
    """State dict keys of arrays that some storage keeps beside a parameter or a state."""
    return {*PARAMETER_KEYS, *(f"{state.name}{SCALE}" for state in rule.all_states())}


def shape_of(rule: Rule, key: str, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """The shape of what is saved under a key for a parameter of this shape and so many elements."""
    scales = {f"{state.name}{SCALE}" for state in rule.all_states()}
    return (blocks_of(size),) if key in scales else shape


def choice_for(key: str, dtype: str) -> str:
    """The options with which an optimizer keeps such an array; "" where none does."""
    if key == "compensation":
        return "kahan=True"
    if key in PARAMETER_KEYS:
        finer = FINER.get((key, dtype))
        return f"master_weights={finer!r}" if finer else ""
    name = "int8" if dtype == "uint8" or key.endswith(SCALE) else dtype
    return f"state_dtype={name!r}" if name in STATE_DTYPES else ""


def check_kept(what: str, key: str, dtype: str, stored: Mapping[str, StoredArray]) -> None:
    """Raise where an optimizer keeps no such array under this key, with what to choose.

    Args:
        what: The array, as messages call it.
        dtype: Name of its type.
        stored: What the optimizer may keep beside the parameter.

    Raises:
        ValueError: It keeps none.
        TypeError: It keeps another.
    """
    choice = choice_for(key, dtype)
    build = f"convert it: {CONVERT}" + (f", or build the optimizer with {choice}" if choice else "")
    if key not in stored:
        raise ValueError(f"{what} belongs to another storage, and this optimizer keeps none; {build}.")
    if stored[key].dtype != dtype:
        raise TypeError(
            f"{what} has dtype {dtype} and this optimizer keeps {stored[key].dtype}; nothing is cast silently: {build}."
        )


def converted(
    what: str,
    entry: Mapping[str, Any],
    rule: Rule,
    data: Array,
    stored: Mapping[str, StoredArray] | None = None,
) -> tuple[dict[str, Any], Array | None]:
    """A parameter's saved state as an optimizer with this rule keeps it, rounded to the nearest where it must be.

    What is kept alike stays as it is, to the bit. States are decoded, and kept again. What makes the parameter finer is
    taken together with its values: load these first. A parameter that holds all of a float32 becomes that.

    Args:
        what: The state, as messages call it.
        entry: What was saved: arrays of the right shapes, and numbers.
        rule: With the optimizer's options.
        data: The parameter's values, as they are now; flat or in their shape.
        stored: What the optimizer may keep beside the parameter; None: what the rule says for all of `data`.

    Returns:
        The state, and the values that the parameter has then; None where they stay.

    Raises:
        ValueError: A master is for a parameter that holds float32 itself, and this is not the master rounded to half
            precision; or codes have no scales.
        TypeError: An array is of a type that no storage has.
    """
    stored, found = stored or stored_arrays(rule, data.dtype.name, data.size), dict(entry)
    for state in rule.all_states():
        if state.name in entry:
            found.pop(f"{state.name}{SCALE}", None)
            found |= _state(what, entry, state, stored, rule)
    moved: Array | None = None
    for key in PARAMETER_KEYS:
        if key in entry:
            ours = kept_parameter(rule, data.dtype.name)
            beside, moved = _parameter(f"{what}: {key}", key, entry[key], ours, data)
            found = {k: v for k, v in found.items() if k not in PARAMETER_KEYS} | beside
            break
    return counted(found, rule), moved


def _state(
    what: str, entry: Mapping[str, Any], state: State, stored: Mapping[str, StoredArray], rule: Rule
) -> dict[str, Any]:
    """A state's arrays by key: as they are, or decoded and kept as the optimizer keeps them."""
    name, scale = state.name, f"{state.name}{SCALE}"
    saved, ours = entry[name], stored[name]
    if saved.dtype.name == ours.dtype:
        return {key: entry[key] for key in (name, scale) if key in entry}
    values = np.empty(saved.size, np.float64 if ours.dtype == "float64" else np.float32)
    if saved.dtype.name == "uint8":
        if scale not in entry:
            raise ValueError(f"{what} has {name!r} in 8 bits and lacks {scale!r}, which it needs to be read.")
        if not state.codes:
            raise ValueError(f"{what} has {name!r} in 8 bits, which {type(rule).__name__} never keeps it in.")
        _read(Kept("uint8", codes=state.codes), saved, entry[scale], values)
    elif saved.dtype.name in DTYPES:
        values[...] = saved.reshape(-1)
    else:
        raise TypeError(f"{what}: {name} has dtype {saved.dtype}, which no storage has; convert it to float32.")
    first = np.empty(saved.shape, ours.dtype)
    if not ours.kept.codes:
        _write(ours.kept, values, first, first)
        return {name: first}
    scales = np.empty(blocks_of(saved.size), np.float32)
    middle = np.full(saved.size, 0x8000, np.uint32)  # no chance: to the nearest
    encode_blocks(values, first.reshape(-1), scales, CODES[ours.kept.codes], middle)
    return {name: first, scale: scales}


def _parameter(what: str, key: str, saved: Array, ours: Kept, data: Array) -> tuple[dict[str, Any], Array | None]:
    """What keeps a parameter finer, by key, as the optimizer keeps it; and the values that the parameter has then."""
    theirs = FINER.get((key, saved.dtype.name)) or FINER.get((key, ""))
    if theirs is None or (theirs == "kahan" and saved.dtype.name not in HALVES):
        raise TypeError(f"{what} has dtype {saved.dtype}, which no storage has; load what state_dict() returned.")
    if ours.dtype not in HALVES:
        return {}, _whole(what, Kept(_half(saved, theirs), theirs), saved, data)
    if theirs != "float32" and _half(saved, theirs) != ours.dtype:
        raise TypeError(f"{what} is the rest of a {_half(saved, theirs)} parameter, and this one has {data.dtype}.")
    if theirs == ours.finer and key != MASTER:  # which its parameter is the rounding of, whatever it was
        return {key: saved}, None
    values, moved = np.empty(data.size, np.float32), np.empty(data.shape, data.dtype)
    _read(Kept(data.dtype.name, theirs), data, saved, values)
    beside = np.empty(data.shape, ours.beside or data.dtype)
    _write(ours, values, moved, beside)
    return ({ours.beside_key: beside} if ours.finer else {}), moved


def _half(saved: Array, theirs: str) -> str:
    """dtype name of the parameter that an array was saved beside; of a float32 master it may be either."""
    return saved.dtype.name if theirs == "kahan" else "bfloat16"


def _whole(what: str, theirs: Kept, saved: Array, data: Array) -> Array | None:
    """The values that a parameter which holds all of a master becomes; None where it holds them already.

    Its values must be what was to be seen of the master: the weights of the same checkpoint, widened.
    """
    values = np.empty(data.size, np.float32)
    if theirs.finer == "float32":
        values[...] = saved.reshape(-1)
        seen = any(_equal(data, _rounded(values, half)) for half in HALVES)
        already = _equal(data, values)
    else:
        half = _rounded(data, theirs.dtype)
        _read(theirs, half, saved, values)
        seen = _equal(data, half)
        already = _equal(data, _joined_again(theirs, saved, data))
    if not seen and not already:
        raise ValueError(
            f"{what}: the parameter, of {data.dtype}, is not what this state's masters round to; load the weights of "
            f"the same checkpoint into the model first."
        )
    return None if already else values.astype(data.dtype).reshape(data.shape)


def _joined_again(theirs: Kept, saved: Array, data: Array) -> Array:
    """What a float32 array is after its rest is replaced by the one that was saved: itself, where it was that."""
    values, half, rest = np.empty(data.size, np.float32), np.empty(data.size, theirs.dtype), np.empty_like(saved)
    values[...] = data.reshape(-1)
    if theirs.finer == "kahan":  # whose sums round to another half now and then
        values -= saved.reshape(-1).astype(np.float32)
    _write(theirs, values, half, rest)
    _read(theirs, half, saved, values)
    return values


def _rounded(values: Array, half: str) -> Array:
    """Values in half precision, in one line."""
    line = np.empty(values.size, half)
    with np.errstate(all="ignore"):
        line[...] = values.reshape(-1)
    return line


def _equal(data: Array, values: Array) -> bool:
    return np.array_equal(data.reshape(-1), values.astype(data.dtype), equal_nan=True)


def _read(kept: Kept, array: Array, beside: Array, to: Array) -> None:
    flat, other = (np.ascontiguousarray(some).reshape(-1) for some in (array, beside))
    pieces.read(other if kept.finer == "float32" else pieces.Piece(kept, flat, other, 0, None, 0), to)


def _write(kept: Kept, values: Array, array: Array, beside: Array) -> None:
    """Values into new arrays, rounded to the nearest."""
    first, second = array.reshape(-1), beside.reshape(-1)
    nearest = dataclasses.replace(kept, stochastic=False)
    with np.errstate(all="ignore"):
        if kept.finer == "float32":
            pieces.write(values, second)
        whole = kept.finer in ("", "float32")
        pieces.write(values, first if whole else pieces.Piece(nearest, first, second, 0, None, 0))


def counted(found: dict[str, Any], rule: Rule) -> dict[str, Any]:
    """With a step where steps are counted for random rounding alone, and without where they are not."""
    if rule.step_key is not None:
        return found
    step = float(found.pop("step", age_of(found)))
    if rule.counter_key is not None:
        return {"step": step, **found} if found or step else {}
    return {key: found[key] for key in found if step or key in PARAMETER_KEYS}  # states of age 0 hold nothing yet


def age_of(entry: Mapping[str, Any]) -> float:
    """The least steps of a parameter whose saved state has no count of them: none where it has no states."""
    return float(not entry.keys() <= PARAMETER_KEYS)


def axes_in_memory(array: Array) -> list[int]:
    """Its axes, from that along which neighbours are farthest apart."""
    return sorted(range(array.ndim), key=lambda axis: -array.strides[axis] if array.shape[axis] > 1 else 0)


def lies_in_order(array: Array) -> bool:
    """Whether elements follow one another in memory as their indices count."""
    strides = [stride for stride, count in zip(array.strides, array.shape) if count > 1]
    return strides == sorted(strides, reverse=True)


def decoded_as_it_lies(codes: Array, scales: Array, state: State) -> Array:
    """A state in 8 bits as float32. Its blocks follow one another in memory, as those of torch's channels_last do."""
    axes = axes_in_memory(codes)
    values, there = np.empty(codes.size, np.float32), np.empty(codes.shape, np.float32)
    _read(Kept("uint8", codes=state.codes or ""), codes.transpose(axes), scales, values)
    there.transpose(axes)[...] = values.reshape(there.transpose(axes).shape)
    return there
