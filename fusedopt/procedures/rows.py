"""SparseAdam and LazyAdam: the rows that a gradient has are gathered, updated, scattered; no other is touched."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedopt.arena import Arena
from fusedopt.backends import module_of
from fusedopt.optimizer import Optimizer
from fusedopt.rules.rule import Rule, Values
from fusedopt.sparse_gradient import SparseGradient


def summed(gradient: SparseGradient, real: Any) -> tuple[Any, Any]:
    """Its rows, each once and in ascending order, and their sums in this dtype, added in the order of the gradient.

    How many rows there are is known to the host alone: on CUDA, it waits for the device.
    """
    xp = module_of(gradient.values)
    order = xp.argsort(gradient.indices, kind="stable")
    indices, values = gradient.indices[order], gradient.values[order].astype(real)
    if not len(indices):
        return indices, values
    first = xp.ones(len(indices), bool)
    first[1:] = indices[1:] != indices[:-1]
    starts = xp.flatnonzero(first)
    return indices[starts], xp.add.reduceat(values, starts, axis=0)


def step_rows(parameter: Any, gradient: SparseGradient, states: dict[str, Any], rule: Rule, step: float) -> None:
    """Call the rule's update on the rows of the gradient; rows are updated in place.

    Args:
        parameter, states: Arrays of one shape, of NumPy or CuPy.
        step: The number of this step, from 1.
    """
    xp = module_of(parameter)
    real = xp.float64 if parameter.dtype == xp.float64 else xp.float32
    rows, g = summed(gradient, real)
    if not len(rows):
        return
    scalars = vars(rule.in_float64().constants(xp.float64(step), Values(), 1.0))
    c = Values(**{name: real(value) for name, value in scalars.items()})
    s = Values(**{name: state[rows].astype(real) for name, state in states.items()})
    p, new = rule.update(parameter[rows].astype(real), rule.prepared(rule.unscaled(g, c), c), s, c)
    parameter[rows] = p.astype(parameter.dtype)
    for name, state in states.items():
        state[rows] = getattr(new, name).astype(state.dtype)


class RowWise(Optimizer):
    """The base of SparseAdam and LazyAdam over NumPy and CuPy arrays.

    A parameter's gradient may be a SparseGradient. An empty one is a gradient: the parameter's step advances, as in
    torch. Dense gradients of LazyAdam are one launch; SparseAdam refuses them.
    """

    takes_rows = True

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients; or fill those that are there with zeros, where some rows become none."""
        super().zero_grad(set_to_none)
        for arena in self.arenas():
            for index, gradient in arena.presence.rows.items():
                arena.presence.rows[index] = SparseGradient(gradient.indices[:0], gradient.values[:0])

    def _update(self, grad_scale: Any, found_inf: Any) -> None:
        if self.rule.procedure and any(any(arena.presence.stepping) for arena in self.arenas()):
            raise RuntimeError(
                f"{type(self).__name__} does not support dense gradients; use Adam, or give a SparseGradient."
            )
        stepping = [
            (arena, sorted(index for index in arena.presence.rows if arena.presence.trainable[index]))
            for arena in self.arenas()
        ]
        if (grad_scale is not None or found_inf is not None) and any(indices for _, indices in stepping):
            raise RuntimeError(
                "a SparseGradient is updated without a launch, which grad_scale and found_inf are for; divide its "
                "values, and leave the step out where they are not finite."
            )
        if summed_over := {s.slot for arena, indices in stepping if indices for s in arena.group.rule.stages}:
            options = ", ".join(("clip_norm", "grad_centralization")[slot] for slot in sorted(summed_over))
            raise RuntimeError(f"{options} is not for a SparseGradient, whose step is no launch; leave it out.")
        for arena, indices in stepping:
            if indices:
                _check_kept_as_values(arena)
        super()._update(grad_scale, found_inf)
        for arena, indices in stepping:
            if indices:
                with arena.memory.here():
                    _step_arena(arena, indices)


def _check_kept_as_values(arena: Arena) -> None:
    """Raise RuntimeError where rows would have to be read or written in another way than as values."""
    if any(kept.beside or kept.stochastic for kept in arena.storage.streams):
        rule = arena.group.rule
        given = ", ".join(f"{name}={getattr(rule, name)!r}" for name in rule.storage_options() if getattr(rule, name))
        raise RuntimeError(
            f"{type(rule).__name__}: {given} is not for a SparseGradient, whose step is no launch; leave it out, or "
            f"give dense gradients."
        )


def _step_arena(arena: Arena, indices: list[int]) -> None:
    """Update the rows of some parameters of an arena."""
    rule, mask = arena.group.rule, np.zeros(len(arena.parameters), bool)
    mask[indices] = True
    buffers = {name: arena.state(name) for name in rule.kept_states}
    arena.begin(mask)
    arena.part_cohorts(mask)
    steps = arena.memory.host(arena.counters)[:, 0] + 1
    for index in indices:
        states = {name: arena.view(buffer, index) for name, buffer in buffers.items()}
        step_rows(arena.view(arena.data, index), arena.presence.rows[index], states, rule, float(steps[index]))
        arena.counters[index, 0] += 1
