"""Whether a backend computes what the rules say: some steps of each, to the bit, against the plain function."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

import fusedopt
from fusedopt.backends import cpu_backend
from fusedopt.cli.side_by_side import on_host
from fusedopt.rules import Values

OPTIMIZERS: tuple[tuple[type[fusedopt.Optimizer], dict[str, Any]], ...] = (
    (fusedopt.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    (fusedopt.Adam, {"lr": 0.01, "weight_decay": 0.01}),
    (fusedopt.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
)
DTYPES = tuple(np.dtype(dtype) for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16))
STEPS = 3
SIZE = 40_001  # elements: more than a block of either backend, and no multiple of four
# Where processors differ if they differ: signed zeros, denormals, the largest numbers, and what is none.
ODD = (0.0, -0.0, 1e-41, -1e-41, 6e-8, 6e4, 1e38, -3e38, np.inf, -np.inf, np.nan)

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How many elements of parameter and states are not what the rule says, of one optimizer and dtype."""

    optimizer: str
    dtype: str
    backend: str
    unequal: int


def self_check(xp: ModuleType) -> Iterator[Outcome]:
    """An outcome for each optimizer and dtype on the arrays of `xp`; one step updates all dtypes together."""
    rng = np.random.default_rng(0)
    name = cpu_backend().name if xp is np else "cuda"
    for cls, options in OPTIMIZERS:
        starts = [_values(rng, dtype) for dtype in DTYPES]
        gradients = [[_values(rng, dtype) for _ in range(STEPS)] for dtype in DTYPES]
        parameters = [fusedopt.Parameter(xp.asarray(start.copy())) for start in starts]
        optimizer = cls(parameters, **options)
        for step in range(STEPS):
            for parameter, of_parameter in zip(parameters, gradients, strict=True):
                parameter.grad = xp.asarray(of_parameter[step])
            optimizer.step()
        for parameter, start, of_parameter in zip(parameters, starts, gradients, strict=True):
            expected, states = as_plain_function(cls.rule(**options), start, of_parameter)
            unequal = _unequal(on_host(parameter.data), expected)
            unequal += sum(_unequal(on_host(optimizer.state[parameter][name]), states[name]) for name in states)
            yield Outcome(cls.__name__, start.dtype.name, name, unequal)


def _values(rng: np.random.Generator, dtype: np.dtype[Any]) -> Array:
    values = rng.standard_normal(SIZE) * 2.0 ** rng.integers(-12, 4, SIZE)
    places = rng.integers(0, SIZE, 20 * len(ODD))
    values[places] = np.resize(ODD, len(places))
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def as_plain_function(rule: Any, start: Array, gradients: Sequence[Array]) -> tuple[Array, dict[str, Array]]:
    """Parameter and states after a step for each gradient, by the rule's own two functions on whole arrays."""
    real = np.dtype(np.float64 if start.dtype == np.float64 else np.float32)
    p, states = start, {name: np.zeros_like(start) for name in rule.kept_states}
    scalar_state = dict(rule.scalar_state)
    with np.errstate(all="ignore"):
        for step, g in enumerate(gradients, 1):
            a = Values(**{name: np.float64(value) for name, value in scalar_state.items()})
            scalars = vars(rule.in_float64().scalars(np.float64(step), a))
            scalar_state |= {name: scalars.pop(name) for name in scalar_state if name in scalars}
            c = Values(**{name: real.type(value) for name, value in scalars.items()})
            s = Values(**{name: state.astype(real) for name, state in states.items()})
            new_p, new = rule.update(p.astype(real), g.astype(real), s, c)
            p, states = new_p.astype(p.dtype), {name: getattr(new, name).astype(p.dtype) for name in states}
    return p, states


def _unequal(ours: Array, expected: Array) -> int:
    """Elements with other bits; any NaN is every NaN, whose sign and payload differ by chip."""
    bits = f"u{expected.dtype.itemsize}"
    same = (ours.view(bits) == expected.view(bits)) | (np.isnan(ours) & np.isnan(expected))
    return int(np.count_nonzero(~same))
