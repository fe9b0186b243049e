"""State dicts of other libraries under our keys: bitsandbytes, torchao, TransformerEngine, apex and DeepSpeed.

What they keep in 8 or 4 bits is decoded to float32. The arrays are NumPy's or torch's, which is not imported here.
Nothing is written in these formats.

Source: `optim/optimizer.py` of bitsandbytes 0.43.3 and 0.50.2; `optim/subclass_*.py` of torchao 0.18;
`optimizers/fused_adam.py` of TransformerEngine 2.20 and of apex 25.09, and apex's `fused_lamb.py`; `ops/adam` of
DeepSpeed 0.19.8.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusedopt.rules.adagrad import Adagrad
from fusedopt.rules.adam import Adam
from fusedopt.rules.lamb import LAMB
from fusedopt.rules.lion import Lion
from fusedopt.rules.rmsprop import RMSprop
from fusedopt.rules.rule import Rule
from fusedopt.rules.sgd import SGD
from fusedopt.storage import BESIDE_PARAMETER, MASTER

Array = np.ndarray[Any, Any]
Entry = dict[str, Any]  # what a state dict has for a parameter

NESTED = "__bnb_optimizer_quant_state__"  # from 0.49.2 on bitsandbytes hides its tensors from FSDP in a dict
BLOCKS = (256, 2048)  # elements of bitsandbytes' states that share a scale: from 0.44.0 on, and before
# Its optimizers, with the option of ours that betas[0] is; its kernels read no dampening, and for RMSprop no momentum.
# LARS is not among them: its buffer gathers gradients without the ratio of norms.
FIRST_BETA: dict[type[Rule], str] = {Adam: "", LAMB: "", Lion: "", Adagrad: "", SGD: "momentum", RMSprop: "alpha"}
# What it keeps beside the step. All of it is decoded or, as norms of past steps, left out.
TENSORS = {f"{name}{i}" for name in ("state", "qmap", "absmax", "max", "new_max") for i in (1, 2)}
TENSORS |= {"gnorm_vec", "unorm_vec"}


def in_our_keys(saved: Any, rules: Sequence[Rule], ours: Sequence[Mapping[str, Any]]) -> Any:
    """A state dict as this library would have saved it; one of its own, or of torch.optim, as it is.

    Args:
        saved: Of anybody; what is no state dict is returned as it is, for the checks to say so.
        rules, ours: Of each of the optimizer's param groups the rule, and the group: with "params".

    Raises:
        ValueError: The rule cannot go on from it: other states, no option for `bias_correction=False`, or codes and
            scales that do not go together.
        KeyError: Codes without their map or their scales.
    """
    parameters = [group["params"] for group in ours]
    if not _fits(saved, parameters):
        return saved
    state, groups = dict(saved["state"]), []
    for number, (group, rule, own) in enumerate(zip(saved["param_groups"], rules, ours)):
        entries = {key: state[key] for key in group["params"] if isinstance(state.get(key), Mapping)}
        of_bitsandbytes = any("state1" in _flat(entry) for entry in entries.values())
        read = {key: _entry(entry, rule, f"the state of {key!r}") for key, entry in entries.items()}
        read = _with_steps_of_all(group, read)
        state |= _without_stale_masters(group, read, dict(zip(group["params"], own["params"])))
        options = _options(group, rule, f"param group {number} of the state dict", of_bitsandbytes)
        foreign = of_bitsandbytes or "bias_correction" in options
        groups.append(_with_what_they_lack(options, rule, own) if foreign else options)
    _warn_of_norms(saved["param_groups"])
    return {**saved, "state": state, "param_groups": groups}


def _fits(saved: Any, parameters: Sequence[Sequence[Any]]) -> bool:
    """Whether this is a state dict of as many groups and parameters."""
    if not isinstance(saved, Mapping) or not isinstance(saved.get("state"), Mapping):
        return False
    groups = saved.get("param_groups")
    return isinstance(groups, Sequence) and [len(some) for some in parameters] == [
        len(group["params"]) if isinstance(group, Mapping) and "params" in group else -1 for group in groups
    ]


# --- options


def _options(group: Mapping[str, Any], rule: Rule, what: str, of_bitsandbytes: bool) -> dict[str, Any]:
    """A param group with the options that have another name here under ours."""
    options, known, title = dict(group), rule.options(), type(rule).__name__
    for name in ("bias_correction", "grad_averaging"):
        if name not in known and not options.get(name, True):
            raise ValueError(f"{what} has {name}={options[name]!r}, which {title} cannot do; choose another optimizer.")
    if _is_apex_lamb(options):
        options["clip_norm"] = options.pop("max_grad_norm")
    if of_bitsandbytes and "betas" not in known and "betas" in options:
        betas, name = options.pop("betas"), next(name for of, name in FIRST_BETA.items() if isinstance(rule, of))
        options |= {name: betas[0]} if name else {}
    return options


def _with_what_they_lack(options: dict[str, Any], rule: Rule, own: Mapping[str, Any]) -> dict[str, Any]:
    """With options that these formats never have as they are in the optimizer's own group: nothing to warn of."""
    never = [name for name, field in rule.options().items() if field.init and not field.metadata["common"]]
    return {name: own[name] for name in never if name in own} | options


def _is_apex_lamb(group: Mapping[str, Any]) -> bool:
    return "max_grad_norm" in group and "grad_averaging" in group


def _warn_of_norms(groups: Sequence[Mapping[str, Any]]) -> None:
    if len(groups) > 1 and any(_is_apex_lamb(group) and group["max_grad_norm"] for group in groups):
        warnings.warn(
            "max_grad_norm of apex's FusedLAMB bounds the norm of all groups together, clip_norm that of each group.",
            stacklevel=5,
        )


# --- what a group has for all of its parameters


def _with_steps_of_all(group: Mapping[str, Any], entries: Mapping[Any, Entry]) -> dict[Any, Entry]:
    """DeepSpeed's FusedAdam counts a group's steps in the state of its last parameter alone; those of others stay 0."""
    steps = [entry["step"] for entry in entries.values() if "step" in entry]
    if not {"step", "bias_correction"} <= set(group) or not steps or not all(isinstance(step, int) for step in steps):
        return dict(entries)
    return {key: {**entry, "step": max(steps)} if "step" in entry else entry for key, entry in entries.items()}


def _without_stale_masters(
    group: Mapping[str, Any], entries: dict[Any, Entry], parameters: Mapping[Any, Any]
) -> dict[Any, Entry]:
    """TransformerEngine makes masters of float32 parameters too, but updates the parameters and never these."""
    if not {"step", "bias_correction"} <= set(group):
        return entries
    stale = [key for key, entry in entries.items() if MASTER in entry and _dtype(parameters[key]) == "float32"]
    if stale:
        warnings.warn(
            f"{MASTER} of {len(stale)} float32 parameters is left out: TransformerEngine does not update it for these. "
            f"If they were bfloat16 there, copy it into them.",
            stacklevel=5,
        )
    return entries | {key: {k: v for k, v in entries[key].items() if k != MASTER} for key in stale}


# --- what a parameter has


def _flat(entry: Mapping[str, Any]) -> Entry:
    nested = entry.get(NESTED)
    return {**{k: v for k, v in entry.items() if k != NESTED}, **nested} if isinstance(nested, Mapping) else dict(entry)


def _entry(entry: Mapping[str, Any], rule: Rule, what: str) -> Entry:
    """A parameter's state under our keys."""
    read = _flat(entry)
    if "state1" in read:
        return _of_bitsandbytes(read, rule, what)
    narrow = {key for key, value in read.items() if _is_of_torchao(value)}
    read = {key: value.dequantize().cpu() if key in narrow else value for key, value in read.items()}
    if {"exp_avg", "exp_avg_sq"} <= narrow:
        _zero_where_the_second_is(read["exp_avg"], read["exp_avg_sq"])
    if _dtype(read.get(MASTER)) == "int16":  # of TransformerEngine's store_param_remainders, and split as ours is
        read[BESIDE_PARAMETER["split"][0]] = read.pop(MASTER)
    return read


def _is_of_torchao(value: Any) -> bool:
    """Whether it is one of torchao's subclasses of Tensor, which decode themselves: to float32."""
    return hasattr(value, "codes") and hasattr(value, "scale") and hasattr(value, "dequantize")


def _of_bitsandbytes(entry: Mapping[str, Any], rule: Rule, what: str) -> Entry:
    names = [state.name for state in rule.all_states()]
    theirs = [f"state{i}" for i in (1, 2) if f"state{i}" in entry]
    if not isinstance(rule, tuple(FIRST_BETA)) or (len(theirs) == 2 and "exp_avg_sq" not in names[1:2]):
        raise ValueError(
            f"{what} has bitsandbytes' {' and '.join(theirs)}, and {type(rule).__name__} keeps "
            f"{', '.join(names) or 'no state'}; of bitsandbytes' are taken those of "
            f"{', '.join(sorted(of.__name__ for of in FIRST_BETA))}, each by the optimizer of that name."
        )
    shapes = [tuple(getattr(entry[key], "shape", ())) for key in theirs]
    if len(set(shapes)) > 1:
        raise ValueError(f"{what} has two averages in state1, as AdEMAMix keeps them; there is no such optimizer here.")
    read = {key: value for key, value in entry.items() if key not in TENSORS}
    if rule.counter_key is None:
        read.pop("step", None)
    decoded = [_decoded(entry, i, f"{what}: state{i}") for i in range(1, len(theirs) + 1)]
    if len(decoded) == 2 and all(_dtype(entry[key]) == "uint8" for key in theirs):
        _zero_where_the_second_is(*decoded)
    return read | dict(zip(names, decoded))


def _zero_where_the_second_is(first: Any, second: Any) -> None:
    """In place: codes for 0 come soonest in a second moment, and m / eps is the end of a training there."""
    first[second == 0] = 0


def _decoded(entry: Mapping[str, Any], number: int, what: str) -> Any:
    """State 1 or 2 in float32: each code's value in the stored map, times the scale of its block."""
    kept = entry[f"state{number}"]
    if _dtype(kept) != "uint8":
        return kept
    whole = f"absmax{number}" not in entry  # block_wise=False, until 0.49: one scale for all
    for key in (f"qmap{number}", f"max{number}" if whole else f"absmax{number}"):
        if key not in entry:
            raise KeyError(f"{what} is kept in 8 bits and lacks {key!r}; it has {', '.join(map(repr, entry))}.")
    codes, values = _on_host(kept), _on_host(entry[f"qmap{number}"])
    if values.shape != (256,) or values.dtype != np.float32:
        raise ValueError(f"{what} has a map of {values.dtype} and shape {values.shape}; it has 256 values of float32.")
    if whole:
        scales = _on_host(entry[f"max{number}"]).reshape(())
    else:
        scales = _spread(_on_host(entry[f"absmax{number}"]), codes, what)
    return _like(entry[f"qmap{number}"], np.asarray(values[codes] * scales))


def _spread(scales: Array, codes: Array, what: str) -> Array:
    """For each code the scale of its block, whose size follows from how many there are."""
    for block in BLOCKS:
        if scales.shape == (-(-codes.size // block),):
            spread: Array = np.repeat(scales, block)[: codes.size].reshape(codes.shape)
            return spread
    raise ValueError(
        f"{what} has codes of shape {codes.shape} and scales of shape {scales.shape}; there is one for each "
        f"{' or '.join(map(str, BLOCKS))} codes."
    )


# --- arrays of either library


def _dtype(value: Any) -> str:
    return str(getattr(value, "dtype", "")).removeprefix("torch.")


def _on_host(value: Any) -> Array:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def _like(value: Any, array: Array) -> Any:
    """An array as one of the value's library and dtype; on the host, since decoded states may not all fit a GPU."""
    return value.detach().cpu().new_tensor(array) if hasattr(value, "new_tensor") else array
