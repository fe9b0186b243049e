"""Whether a device gives NumPy's bits: every rule, its flags, all dtypes, odd sizes, unusual steps."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

import fusedopt
from fusedopt.optimizers import RULES
from fusedopt.storage_choices import CHOICES

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
SHAPES = ((0,), (1,), (3,), (17,), (4_097,), (0,), (70_001,), (7, 4_100))
UNUSUAL = (0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-42)
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("SGD", {"weight_decay": 0.01}),
    ("SGD", {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"weight_decay": 0.01, "amsgrad": True}),
    ("Adam", {"weight_decay": 0.01, "decoupled_weight_decay": True, "maximize": True}),
    ("AdamW", {}),
    ("AdamW", {"weight_decay": 0.1, "amsgrad": True}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.01, "clip_norm": 1.0, "clip_value": 0.5, "loss_scale": 2.0}),
    ("AdamW", {"grad_centralization": True, "clip_norm": 1.0}),
    *((name, {}) for name in RULES if name not in ("SGD", "Adam", "AdamW")),
)

# With storages: what is kept of bfloat16 parameters, and where random numbers are drawn.
STORED = tuple(
    (name, dict(choice.options)) for name in ("Adam", "Lion") for choice in CHOICES.values() if choice.options
)

Array = np.ndarray[Any, Any]


def differing(ours: Array, theirs: Array) -> int:
    """How many elements have not the same bits; two NaNs count as the same, whatever their sign and payload."""
    bits = np.dtype(f"u{ours.dtype.itemsize}")
    unequal = ours.reshape(-1).view(bits) != theirs.reshape(-1).view(bits)
    return int((unequal & ~(np.isnan(ours.reshape(-1)) & np.isnan(theirs.reshape(-1)))).sum())


def outcome(array: Callable[[Array], Any], host: Callable[[Any], Array], name: str, options: Any, dtype: Any) -> Any:
    """Parameters and states, by name, after six steps on arrays of a device."""
    random = np.random.default_rng(1)

    def values(shape: tuple[int, ...]) -> Any:
        return array(random.standard_normal(shape).astype(dtype))

    parameters = [fusedopt.Parameter(values(shape)) for shape in SHAPES]
    optimizer = getattr(fusedopt, name)(parameters, lr=1e-2, **options)
    for step in range(6):
        optimizer.zero_grad()
        for index, parameter in enumerate(parameters):
            gradient = random.standard_normal(parameter.size).astype(dtype)
            if step == 3 and parameter.size >= len(UNUSUAL):
                gradient[: len(UNUSUAL)] = np.array(UNUSUAL, np.float64).astype(dtype)
            if (step, index) != (1, 3):  # once, one parameter has no gradient
                parameter.grad = array(gradient.reshape(parameter.shape))
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        optimizer.step(grad_scale=8.0 if step == 4 else None, found_inf=1.0 if step == 2 else None)
    result = {f"parameter {i}": host(parameter.data) for i, parameter in enumerate(parameters)}
    for i, state in optimizer.state_dict()["state"].items():
        result |= {f"{key} {i}": np.asarray(value) for key, value in state.items()}
    return result


def compare(array: Callable[[Array], Any], host: Callable[[Any], Array], until: float = math.inf) -> dict[str, Any]:
    """Each case on each dtype: the arrays that differ, or the error that came instead.

    What there is no time for before `until` (of `time.time`) is left out, and then it has not passed.
    """
    found: dict[str, Any] = {}
    left_out = []
    for (name, options), dtype in (*itertools.product(CASES, DTYPES), *itertools.product(STORED, DTYPES[-1:])):
        title = f"{name}({', '.join(f'{k}={v}' for k, v in options.items())}) {np.dtype(dtype).name}"
        if time.time() > until:
            left_out.append(f"{title}: left out, there is no time left")
            continue
        try:
            found[title] = differences(array, host, name, options, dtype)
        except Exception as error:
            found[title] = f"{type(error).__name__}: {error}"
    wrong = {title: what for title, what in found.items() if what}
    return {
        "passed": not wrong and not left_out,
        "cases": len(found),
        "elements": sum(map(math.prod, SHAPES)),
        "different": wrong,
        "notes": left_out,
    }


def differences(array: Callable[[Array], Any], host: Callable[[Any], Array], *case: Any) -> dict[str, int] | str:
    """How many elements of which arrays differ from NumPy's; or in a sentence, that there are other arrays."""
    with np.errstate(all="ignore"):
        expected = outcome(np.array, np.array, *case)
        got = outcome(array, host, *case)
    if expected.keys() != got.keys():
        return f"has {sorted(got)}, expected {sorted(expected)}"
    counts = {key: differing(expected[key], got[key]) for key in expected}
    return {key: count for key, count in counts.items() if count}
