"""Muon: one matrix after the other, since its products are no elementwise operations; nothing waits for the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from fusedopt.backends import Backend, Steps, module_of
from fusedopt.layout import Arena, ArenaSpan
from fusedopt.procedures.procedure import Procedure, SpanPlan
from fusedopt.rules.muon import Muon
from fusedopt.rules.rule import Rule


@dataclasses.dataclass(frozen=True)
class Matrices:
    """What a library of arrays does with matrices.

    Attributes:
        normalized: (x, eps) -> x divided by its Frobenius norm, or by eps where that is larger.
        multiply_add: (beta, c, alpha, a, b) -> beta c + alpha a b, which is one operation in torch.
    """

    normalized: Callable[[Any, float], Any]
    multiply_add: Callable[[float, Any, float, Any, Any], Any]


def _normalized(x: Any, eps: float) -> Any:
    xp = module_of(x)
    return x / xp.maximum(xp.sqrt((x * x).sum()), x.dtype.type(eps))


ARRAYS = Matrices(_normalized, lambda beta, c, alpha, a, b: beta * c + alpha * (a @ b))


def orthogonalized(x: Any, rule: Muon, matrices: Matrices = ARRAYS) -> Any:
    """A matrix with about the same singular vectors, and singular values from 0.7 to 1.2: Newton-Schulz iterations.

    Args:
        x: A matrix, of the dtype that it is computed in.
        rule: Has the polynomial, and how often it is iterated.
        matrices: Of the library that x is from.
    """
    rows, columns = x.shape
    x = x.T if rows > columns else x  # so that x x^T is the smaller one of the two
    x = matrices.normalized(x, rule.eps)
    first, third, fifth = rule.ns_coefficients
    for _ in range(rule.ns_steps):
        a = x @ x.T
        x = matrices.multiply_add(first, x, 1.0, matrices.multiply_add(third, a, fifth, a, a), x)
    return x.T if rows > columns else x


def step_matrix(parameter: Any, gradient: Any, momentum: Any, rule: Muon) -> None:
    """Update a matrix and its momentum, arrays of NumPy or CuPy, in place."""
    xp = module_of(parameter)
    real = xp.float64 if parameter.dtype == xp.float64 else xp.float32
    g, b = gradient.astype(real), momentum.astype(real)
    b = b + (1 - rule.momentum) * (g - b)
    momentum[...] = b.astype(momentum.dtype)
    x = (g + rule.momentum * (b - g) if rule.nesterov else b).astype(rule.ns_dtype or real)
    x = orthogonalized(x, rule).astype(real)
    p, decay = parameter.astype(real), rule.lr * rule.weight_decay
    p = p - decay * p if decay else p  # below 3e-8, 1 - decay would be 1 in float32
    parameter[...] = (p - rule.adjusted_lr(parameter.shape) * x).astype(parameter.dtype)


def _step_some(arena: Arena, indices: range) -> None:
    momentum, rule = arena.state("momentum_buffer"), arena.group.rule
    assert isinstance(rule, Muon)
    for index in indices:
        p, g, b = (arena.view(buffer, index) for buffer in (arena.data, arena.gradients, momentum))
        step_matrix(p, g, b, rule)
    arena.counters[indices.start : indices.stop, 0] += 1  # the age of the momentum


class Orthogonalizing(Procedure):
    """The base of Muon over NumPy and CuPy arrays."""

    def _variant(self, rule: Rule) -> None:
        if getattr(rule, "ns_dtype", None) == "bfloat16":
            raise ValueError(
                "Muon: ns_dtype='bfloat16' is for torch tensors: NumPy has no such products; leave it out."
            )

    def _plan(self, backend: Backend, spans: Sequence[ArenaSpan]) -> Steps:
        return SpanPlan(spans, _step_some)
