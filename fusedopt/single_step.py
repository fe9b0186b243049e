"""One step of a rule on arrays that the caller keeps: no optimizer, no groups, nothing that is left behind.

`functional.py` has a function of this for each of the library's rules.
"""

from __future__ import annotations

import collections
import functools
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusedopt.backends import Backend, backend_of
from fusedopt.layout import RuleGroup, TensorSpan, device_of
from fusedopt.parameter import DTYPES
from fusedopt.rules.rule import Rule, Values, check_declaration
from fusedopt.storage import plain
from fusedopt.tracing import trace

FOR_OPTIMIZERS = "says how an optimizer keeps arrays, and here the caller does; leave it out, or use an optimizer"


def result_type(rule: type[Rule]) -> Any:
    """What a step of the rule returns: a named tuple of `p`, the state arrays and the scalar states, in that order."""
    return _result_type(rule)  # type: ignore[arg-type]  # a class can be hashed


@functools.cache
def _result_type(rule: Any) -> Any:
    return collections.namedtuple(f"{rule.__name__}Step", ("p", *state_names(rule)))


def state_names(rule: type[Rule]) -> tuple[str, ...]:
    """All that some variant of the rule keeps: arrays, then numbers."""
    return (*(state.name for state in rule.all_states()), *rule.scalar_state)


def apply(rule: Rule, p: Any, g: Any, *states: Any, step: int, in_place: bool = False, **named: Any) -> Any:
    """One step of any rule, a rule of one's own too: the bits that an optimizer's step gives, in one launch.

    Args:
        rule: With its hyperparameters: `MyRule(lr=0.1)`.
        p: The parameter: a NumPy or CuPy array of float32, float64, float16 or bfloat16.
        g: The gradient, of p's shape; it is not changed. float64 goes with float32 and float64 alone, and float32 with
            all: so a float64 p takes either, and no other p takes a float64 g or state.
        *states, **named: The rule's state arrays, of p's shape and of one dtype, then its scalar states, in the rule's
            order or by name. None is a state that this variant of the rule does not keep, or, at step 1, one that
            starts now.
        step: The number of this update, 1 at the first.
        in_place: Write into `p` and the states that are given, which moves the fewest bytes; False: into copies.

    Returns:
        A named tuple `(p, *states)`, with None for what is not kept; `p, *states = apply(rule, p, g, *states, step=t)`
        is a loop's line.

    Raises:
        TypeError: A wrong kind of argument or array, a state that is missing, unknown or given twice.
        ValueError: Shapes or devices differ, memory overlaps, or the step is no whole number from 1.
        RuntimeError: The backend that is asked for cannot work here. Nothing has changed after any of these.
    """
    if not isinstance(rule, Rule):
        got = f"the class {rule.__name__}; call it" if isinstance(rule, type) else repr(rule)
        raise TypeError(f"apply takes a rule with its hyperparameters, such as MyRule(lr=0.1), got {got}.")
    check_declaration(type(rule))
    name = type(rule).__name__
    if rule.procedure:
        raise TypeError(f"apply: {name} is a procedure, whose step is no single update; use fusedopt.{name}.")
    for option in rule.storage_options():
        if getattr(rule, option):
            raise TypeError(f"apply: {option}={getattr(rule, option)!r} of {name} {FOR_OPTIMIZERS}.")
    return updated(rule, type(rule).__name__, p, g, _by_name(type(rule), states, named), step, in_place)


def updated(rule: Rule, what: str, p: Any, g: Any, given: Mapping[str, Any], step: Any, in_place: bool) -> Any:
    """`apply` with the states by name; `what` is called so in errors."""
    _check_array(what, "p", p)
    _check_alike(what, "g", g, p)
    step = _number(what, "step", step)
    if not step >= 1 or step % 1 != 0:
        raise ValueError(f"{what}: step must be a whole number from 1, 1 at the first update, got {step:g}.")
    arrays, scalar_state = _checked_states(rule, what, given, p, step)
    if in_place:
        _check_places(what, {"p": p, **arrays}, g)
    backend = backend_of(p)
    dtype = next((array.dtype for array in arrays.values() if array is not None), p.dtype)  # of all states
    with backend.here():
        p = p if in_place else p.copy()
        for state in rule.states():
            if arrays[state.name] is None:
                arrays[state.name] = backend.zeros(p.size, dtype).reshape(p.shape)
                arrays[state.name][...] = rule.initial(state)
            elif not in_place:
                arrays[state.name] = arrays[state.name].copy()
    begun = np.array([step - 1, *scalar_state.values(), 0.0], np.float64)
    after = _scalars_after(rule, begun[0] + 1, scalar_state)
    execute(backend, rule, p, g, list(arrays.values()), backend.asarray(begun))
    return result_type(type(rule))(**dict.fromkeys(state_names(type(rule))) | {"p": p, **arrays, **after})


def _by_name(rule: type[Rule], states: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    names = state_names(rule)
    if len(states) > len(names):
        raise TypeError(f"apply: {rule.__name__} has {len(names)} states ({', '.join(names)}), got {len(states)}.")
    given = dict(zip(names, states))
    for name in named:
        if name not in names:
            cure = "hyperparameters belong to the rule: apply(MyRule(lr=0.1), ...)" if name in rule.options() else ""
            raise TypeError(
                f"apply: {rule.__name__} has no state {name!r}; {cure or 'it has ' + (', '.join(names) or 'none')}."
            )
        if name in given:
            raise TypeError(f"apply: {name} is given twice, by place and by name.")
    return {**given, **named}


def _checked_states(
    rule: Rule, what: str, given: Mapping[str, Any], p: Any, step: float
) -> tuple[dict[str, Any], dict[str, float]]:
    """The arrays that the rule keeps by name, None for one that starts now; and the scalar states."""
    traced = trace(rule)
    kept = (*traced.states, *traced.scalar_state)
    for name, value in given.items():
        if name not in kept and value is not None:
            raise TypeError(f"{what}: {traced.title} keeps no {name}; leave it out, or turn on what it belongs to.")
    for name in kept:
        if given.get(name) is None and step != 1:
            raise TypeError(f"{what}: {name} is missing at step {step:g}; give what the step before it returned.")
    arrays = {name: given.get(name) for name in traced.states}
    for name, array in arrays.items():
        if array is not None:
            _check_alike(what, name, array, p)
    dtypes = {array.dtype.name for array in arrays.values() if array is not None}
    if len(dtypes) > 1:
        raise TypeError(f"{what}: the states must have one dtype, got {' and '.join(sorted(dtypes))}; convert them.")
    scalars = {name: given.get(name) for name in traced.scalar_state}
    initial = rule.scalar_state
    return arrays, {n: float(initial[n]) if v is None else _number(what, n, v) for n, v in scalars.items()}


def _check_array(what: str, name: str, array: Any) -> None:
    is_array = hasattr(array, "reshape") and hasattr(array, "flags") and not isinstance(array, np.generic)
    if not is_array or str(getattr(array, "dtype", None)) not in DTYPES:
        kind = f"an array of {array.dtype}" if hasattr(array, "dtype") else repr(array)[:60]
        raise TypeError(
            f"{what}: {name} must be a NumPy or CuPy array of {', '.join(DTYPES)}, got {kind} "
            f"({type(array).__name__}); convert it: np.asarray({name}, 'float32'), or tensor.detach().numpy()."
        )


def _check_alike(what: str, name: str, array: Any, p: Any) -> None:
    _check_array(what, name, array)
    if array.shape != p.shape:
        raise ValueError(f"{what}: {name} has shape {array.shape} and p {p.shape}; they must be the same.")
    here, there = array.dtype.name, p.dtype.name
    if here not in (("float64", "float32") if there == "float64" else ("float32", "float16", "bfloat16")):
        raise TypeError(
            f"{what}: {name} has {here} and p {there}, which do not go together; convert it with "
            f"{name}.astype({there!r})."
        )
    if device_of(array) != device_of(p):
        raise ValueError(f"{what}: {name} is on {device_of(array)} and p on {device_of(p)}; move {name} there first.")


def _number(what: str, name: str, value: Any) -> float:
    if getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{what}: {name} must be a number, got {value!r} ({type(value).__name__}).")
    return float(value)


def _check_places(what: str, written: Mapping[str, Any], g: Any) -> None:
    """Raise where an array cannot be written to as it is, or one is a part of another."""
    taken: dict[str, tuple[int, int]] = {}
    for name, array in {**written, "g": g}.items():
        if array is None:
            continue
        if name != "g" and not array.flags.c_contiguous:
            raise ValueError(f"{what}: {name} is not C-contiguous and is to be changed in place; use in_place=False.")
        if name != "g" and not getattr(array.flags, "writeable", True):
            raise ValueError(f"{what}: {name} is read-only and is to be changed in place; use in_place=False.")
        first = _address(array)
        last = first + array.nbytes
        for other, (begins, ends) in taken.items():
            if array.flags.c_contiguous and first < ends and begins < last:
                raise ValueError(f"{what}: {other} and {name} overlap in memory; copy one of them.")
        taken[name] = first, last


def _address(array: Any) -> int:
    on_device = getattr(array, "__cuda_array_interface__", None)
    return int((on_device or array.__array_interface__)["data"][0])


def _scalars_after(rule: Rule, step: Any, scalar_state: Mapping[str, float]) -> dict[str, float]:
    """The scalar states after the step: on the host, as the device has them, so that nobody waits for it."""
    if not scalar_state:
        return {}
    with np.errstate(all="ignore"):
        a = Values(**{name: np.float64(value) for name, value in scalar_state.items()})
        new = vars(rule.in_float64().scalars(step, a))
    return {name: float(new.get(name, value)) for name, value in scalar_state.items()}


def execute(backend: Backend, rule: Rule, p: Any, g: Any, states: Sequence[Any], counters: Any) -> None:
    """One step in place, unchecked: C-contiguous arrays of a backend, and float64 counters as `Span` has them."""
    kept = plain(p.dtype.name, g.dtype.name, tuple(state.dtype.name for state in states if state is not None))
    with backend.here():
        gradient = (g if g.flags.c_contiguous else g.copy()).reshape(-1)
    flat = [state.reshape(-1) for state in states]
    span = TensorSpan(RuleGroup(rule), int(p.size), tuple(p.shape), kept, p.reshape(-1), gradient, flat, counters)
    backend.plan([span]).step(None, None)
