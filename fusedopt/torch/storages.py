"""How a parameter's tensors are kept: what the options say, what is there, and what is made where nothing is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from fusedopt.eight_bits import encoded_constant
from fusedopt.rules.declaration import State
from fusedopt.rules.rule import Rule
from fusedopt.storage import (
    BESIDE_PARAMETER,
    BLOCK,
    FINER_OPTIONS,
    HALVES,
    MASTER,
    SCALE,
    Kept,
    Storage,
    StoredGroup,
    array_dtypes,
    blocks_of,
    keys_of,
    storage,
    storage_of,
)
from fusedopt.torch.tensors import DTYPES, is_plain, local, memory_order, placements

BESIDE = frozenset(key for key, _ in BESIDE_PARAMETER.values())  # keys of what makes a parameter finer
TYPES = {name: dtype for dtype, name in DTYPES.items()}
TYPES |= {"uint8": torch.uint8, "int8": torch.int8, "int16": torch.int16}
OPTIONS = tuple(Rule.storage_options())


def options_of(rule: Rule) -> dict[str, Any]:
    """A rule's options of how arrays are kept."""
    return {name: getattr(rule, name) for name in OPTIONS}


def stored_group(rule: Rule, params: Mapping[str, torch.Tensor]) -> StoredGroup:
    """What is checked of a group, of whose parameters those without memory may still get any dtype.

    Args:
        params: By what messages call them.
    """
    unknown = [torch.nn.parameter.is_lazy(p) or p.is_meta for p in params.values()]
    dtypes = [DTYPES.get(p.dtype, str(p.dtype)) for p in params.values()]
    return StoredGroup(rule, ["" if one else dtype for one, dtype in zip(unknown, dtypes)], list(params))


def stated_options(rule: Rule, defaults: Mapping[str, Any]) -> list[str]:
    """Options that a group has for itself: other than the defaults, since groups of another optimizer state all."""
    return [name for name in FINER_OPTIONS if getattr(rule, name) != defaults.get(name, getattr(Rule, name))]


def size_in_blocks(parameter: torch.Tensor) -> int:
    """Elements of the whole parameter, by which 8-bit states are; 0, as if it were small, where its parts do not begin
    and end with blocks: of DTensors, all but those that are shared by rows of whole blocks."""
    if is_plain(type(parameter)):
        return parameter.numel()
    from torch.distributed.tensor import Replicate, Shard

    by_rows = all(type(one) is Replicate or (type(one) is Shard and one.dim == 0) for one in placements(parameter))
    rows = parameter.shape[0] if parameter.ndim else 0
    whole = by_rows and parameter.is_contiguous() and rows > 0 and parameter.numel() // rows % BLOCK == 0
    return parameter.numel() if whole else 0


def storage_beside(rule: Rule, parameter: torch.Tensor, gradient: torch.dtype, entry: Mapping[str, Any]) -> Storage:
    """How the arrays of a parameter are: as the options say, and where these leave it open, as the states are.

    Args:
        rule: With the options of the parameter's group.
        parameter: Of a dtype in `DTYPES`.
        gradient: dtype of its gradient.
        entry: Its state, of which some may be missing.
    """
    said = storage_of(rule, DTYPES[parameter.dtype], DTYPES[gradient], size_in_blocks(parameter))
    left_open = [state.name for state in rule.states() if rule.state_dtype_of(state.name) is None]
    there = {name: dtype for name in left_open if (dtype := _dtype_name(entry.get(name))) is not None}
    if not there:
        return said
    others = next(iter(there.values()))  # those that are missing become like the first one
    states = tuple(
        dataclasses.replace(kept, dtype=dtype, stochastic=rule.stochastic_rounding and dtype in HALVES)
        if (dtype := there.get(name, others if name in left_open else None)) is not None
        else kept
        for name, kept in zip(rule.kept_states, said.states)
    )
    return storage(said.parameter, said.gradient, states)


def _dtype_name(state: Any) -> str | None:
    return DTYPES.get(state.dtype) if isinstance(state, torch.Tensor) else None


def dtypes_by_key(rule: Rule, kept: Storage) -> dict[str, torch.dtype]:
    """The dtype of what is kept under each state dict key, in a span's order."""
    return dict(zip(keys_of(rule, kept), (TYPES[name] for name in array_dtypes(kept)[2:])))


def is_scale(rule: Rule, key: str) -> bool:
    """Whether the scales of a state are under this key."""
    return key.endswith(SCALE) and key.removesuffix(SCALE) in {state.name for state in rule.all_states()}


def coded_states(rule: Rule, kept: Storage) -> dict[str, Kept]:
    """The states that are kept in 8-bit codes."""
    return {name: how for name, how in zip(rule.kept_states, kept.states) if how.codes}


def scale_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """Of the scales of a parameter's 8-bit state: a vector; of a DTensor a row of them for each of its rows."""
    if is_plain(type(parameter)):
        return (blocks_of(parameter.numel()),)
    rows = parameter.shape[0] if parameter.ndim else 1
    return (rows, parameter.numel() // max(1, rows) // BLOCK)


def like_scale(parameter: torch.Tensor, value: float) -> torch.Tensor:
    """Scales that are all the same."""
    shape, here = scale_shape(parameter), local(parameter)
    if is_plain(type(parameter)):
        return torch.full(shape, value, dtype=torch.float32, device=here.device)
    part = torch.full((here.shape[0], shape[1]), value, dtype=torch.float32, device=here.device)
    return shared_as(parameter, part, shape)


def shared_as(parameter: Any, part: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The part of a tensor that is here as a DTensor of a shape, shared as the parameter is."""
    from torch.distributed.tensor import DTensor

    whole = torch.empty(shape, device="meta")
    made: torch.Tensor = DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
    return made


def new_state(parameter: torch.Tensor, initial: float, how: Kept, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """A state of equal elements as they are kept.

    Args:
        order: Strides of 8-bit codes, whose blocks follow one another in memory; None: the parameter's.
    """
    value: float = encoded_constant(initial, how)[0] if how.codes else initial
    if how.codes and order is not None and is_plain(type(parameter)):
        return torch.empty_strided(parameter.shape, order, dtype=torch.uint8, device=parameter.device).fill_(value)
    dtype = TYPES[how.dtype]
    return torch.full_like(parameter, value, dtype=dtype, memory_format=torch.preserve_format).detach()


def new_states(
    parameter: torch.Tensor, initial: float, state: State, how: Kept, order: tuple[int, ...] | None = None
) -> dict[str, torch.Tensor]:
    """A state, and its scales where it has some, by their keys."""
    made = {state.name: new_state(parameter, initial, how, order)}
    return made | (
        {f"{state.name}{SCALE}": like_scale(parameter, encoded_constant(initial, how)[1])} if how.codes else {}
    )


def new_beside(parameter: torch.Tensor, key: str, dtype: torch.dtype) -> torch.Tensor:
    """What makes a parameter finer, as it is at first: a master is the parameter, the rest is nothing."""
    made = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format).detach()
    return made.copy_(parameter.detach()) if key == MASTER else made


def start_again(parameter: torch.Tensor, entry: Mapping[str, Any]) -> None:
    """Let what makes a parameter finer start again from the parameter as it is."""
    for key in BESIDE & entry.keys():
        entry[key].copy_(parameter) if key == MASTER else entry[key].zero_()


def order_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """The strides of the memory order of the part of it that is here."""
    return memory_order(local(tensor))


def sent(key: str, value: Any) -> Any:
    """A remainder of int16 as state dicts have it: the same bits as bfloat16, since neither gloo nor NCCL sends int16,
    and whole state dicts of sharded models are sent. Anything else as it is."""
    return _viewed(value, torch.bfloat16) if key == "remainder" and _has(value, torch.int16) else value


def received(key: str, value: Any) -> Any:
    """The other way."""
    return _viewed(value, torch.int16) if key == "remainder" and _has(value, torch.bfloat16) else value


def _has(value: Any, dtype: torch.dtype) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == dtype


def _viewed(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if is_plain(type(tensor)):
        return tensor.view(dtype)
    return shared_as(tensor, local(tensor).view(dtype), tuple(tensor.shape))
