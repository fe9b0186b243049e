"""Muon: products of one matrix after the other between two launches for all of them; nothing waits for the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from fusedopt.arena import ArenaSpan
from fusedopt.backends import Backend, Steps, module_of
from fusedopt.layout import TensorSpan
from fusedopt.procedures.launched_rules import Blend, Movement
from fusedopt.procedures.launches import ArenaTask, LaunchPlan, T, arena_tasks
from fusedopt.procedures.procedure import Procedure
from fusedopt.rules.muon import Muon
from fusedopt.rules.rule import Rule
from fusedopt.storage import Kept, storage
from fusedopt.tracing import Traced, trace


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


class MuonPlan(LaunchPlan[T]):
    """The momentum of all matrices is a launch, which leaves their directions where updates belong; each of these is
    made orthogonal in its place; and all matrices move in another launch."""

    def movement(self, rule: Muon) -> Movement:
        return Movement(rule.lr * rule.weight_decay, seed=rule.seed)

    def before(self, task: T) -> TensorSpan:
        kept = task.span.storage
        how = storage(Kept(kept.real), kept.gradient, kept.states)
        states = [*task.states, *task.scales]
        return task.launched(self.group(task, blend), how, task.update, task.span.gradient, states)


def blend(rule: Muon) -> Blend:
    """What launches learn a momentum with."""
    return Blend(rule.momentum, rule.nesterov, seed=rule.seed)


class _Plan(MuonPlan[ArenaTask]):
    """Over arrays."""

    def compute(self, task: ArenaTask) -> None:
        rule, update = task.span.group.rule, task.update.reshape(task.span.shape)
        assert isinstance(rule, Muon)
        x = orthogonalized(update.astype(rule.ns_dtype or update.dtype), rule).astype(update.dtype, copy=False)
        update[...] = rule.adjusted_lr(task.span.shape) * x


class Orthogonalizing(Procedure):
    """The base of Muon over NumPy and CuPy arrays."""

    def _variant(self, rule: Rule) -> Traced:
        assert isinstance(rule, Muon)
        if rule.ns_dtype == "bfloat16":
            raise ValueError(
                "Muon: ns_dtype='bfloat16' is for torch tensors: NumPy has no such products; leave it out."
            )
        return trace(blend(rule))

    def _plan(self, backend: Backend, spans: Sequence[ArenaSpan]) -> Steps:
        return _Plan(backend, arena_tasks(backend, spans))
