"""A second moment whose gradients have become small: how far each way of keeping it follows them down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

import fusedopt
from fusedopt.eight_bits import CODES, decoded, spread

SIZE, LARGE_STEPS, SMALL_STEPS = 4096, 500, 3000
SMALL = 0.1  # the gradients' deviation in the end; at first it is 1
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"state_dtype": "float32"},
    "bfloat16": {"state_dtype": "bfloat16"},
    "bfloat16, stochastic": {"state_dtype": "bfloat16", "stochastic_rounding": True},
    "int8": {"state_dtype": {"exp_avg": "float32", "exp_avg_sq": "int8"}},
}


def compared(size: int = SIZE, steps: int = SMALL_STEPS) -> dict[str, float]:
    """The root of AdamW's mean second moment at the end, as a multiple of float32's: steps are too short by that."""
    means = {name: _mean(options, size, steps) for name, options in WAYS.items()}
    return {name: round((mean / means["float32"]) ** 0.5, 3) for name, mean in means.items()}


def _mean(options: dict[str, Any], size: int, steps: int) -> float:
    weights = fusedopt.Parameter(np.ones(size, ml_dtypes.bfloat16))
    optimizer = fusedopt.AdamW([weights], master_weights="split", **options)
    random = np.random.default_rng(0)
    for step in range(LARGE_STEPS + steps):
        gradient = random.standard_normal(size) * (1 if step < LARGE_STEPS else SMALL)
        weights.grad = gradient.astype(ml_dtypes.bfloat16)
        optimizer.step()
    return float(_second_moments(optimizer.state[weights]).mean())


def _second_moments(state: Mapping[str, Any]) -> Any:
    kept = state["exp_avg_sq"]
    if kept.dtype != np.uint8:
        return kept.astype(np.float32)
    found = np.empty(kept.size, np.float32)
    decoded(kept, spread(state["exp_avg_sq_scale"], 0, kept.size), CODES["unsigned"], found)
    return found
