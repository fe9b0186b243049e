"""A check that the rule trains where arrays are kept in fewer bits: bfloat16 and its remainder, states in 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedopt.backends import array_module
from fusedopt.eight_bits import CODES
from fusedopt.parameter import Parameter
from fusedopt.rounding import joined
from fusedopt.rules.rule import Rule
from fusedopt.storage import SMALL
from fusedopt.testing.report import Failure, Note
from fusedopt.testing.subject import Array, Subject, changed, ordinary, shown
from fusedopt.testing.whole_optimizers import on_host, optimizer_class, options_of

STEPS = 8
APART = (
    0.25  # of the way that the parameter went: as far off the same steps may end. The library's rules end within 0.05
)


def storages(subject: Subject) -> str:
    """With the other bits beside bfloat16 and states in 8 bits, the parameter goes where it goes in float32."""
    rule = subject.telling
    states = {state.name: "int8" if state.codes else "float32" for state in rule.states()}
    if changed(rule, {"state_dtype": states}) is None:  # as by its own `check`
        states = dict.fromkeys(states, "float32")
    _check_signs(rule)
    start = ordinary(SMALL, "bfloat16", 0)
    plain = _trained(rule, start.astype(np.float32), {})
    kept = _trained(rule, start, {"master_weights": "split", "state_dtype": states})
    moved = np.linalg.norm(plain - start.astype(np.float32))
    if not np.isfinite(plain).all() or not moved:
        raise Note("with these numbers the parameter does not move in float32, or not to finite values")
    apart = np.linalg.norm(kept - plain) / moved
    small = [name for name, dtype in states.items() if dtype == "int8"]
    if not apart <= APART:
        raise Failure(
            f"with state_dtype='int8', {shown(rule)} ends {apart:.2g} of its way from where it ends in float32, and "
            f"allowed is {APART}: of {' or '.join(map(repr, small))} small differences decide; declare "
            f"State(name, codes=None), for which int8 is refused."
        )
    return f"with a split master and {', '.join(small) or 'no state'} in 8 bits it ends {apart:.2g} of its way off"


def _check_signs(rule: Rule) -> None:
    """Raise Failure where a state that has no sign in 8 bits goes below zero."""
    optimizer = _optimizer(rule, ordinary(SMALL, "float32", 0), {})
    (parameter,) = optimizer.parameters()
    unsigned = [state for state in rule.states() if state.codes and not CODES[state.codes].signed]
    for seed in range(STEPS if unsigned else 0):
        _step(optimizer, parameter, seed)
        for state in unsigned:
            if on_host(optimizer.state[parameter][state.name]).min() < 0:
                raise Failure(
                    f"the state {state.name!r} of {shown(rule)} is declared with codes={state.codes!r} and goes below "
                    f"zero; declare State({state.name!r}, codes='signed')."
                )


def _trained(rule: Rule, start: Array, options: dict[str, Any]) -> Array:
    """The parameter after some steps, with its remainder."""
    optimizer = _optimizer(rule, start, options)
    (parameter,) = optimizer.parameters()
    for seed in range(STEPS):
        _step(optimizer, parameter, seed)
    data, remainder = on_host(parameter.data), optimizer.state[parameter].get("remainder")
    if remainder is None:
        return data
    found = np.empty(SMALL, np.float32)
    joined(data, on_host(remainder), found)
    return found


def _optimizer(rule: Rule, start: Array, options: dict[str, Any]) -> Any:
    parameter = Parameter(array_module().asarray(start.copy()), grad_dtype=np.float32)
    return optimizer_class(type(rule))([parameter], **options_of(rule) | options)


def _step(optimizer: Any, parameter: Parameter, seed: int) -> None:
    """With gradients of which each element has a mean of its own, as in training."""
    mean = ordinary(SMALL, "float32", 99)
    parameter.grad = array_module().asarray(mean + ordinary(SMALL, "float32", 10 + seed))
    optimizer.step()
