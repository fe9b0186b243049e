"""What 8 bits make of a small second moment: never so small a divisor that an update is longer than float32's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cases import CASES, Case
from fusedopt import Parameter
from fusedopt.eight_bits import CODES
from fusedopt.storage import SMALL
from storages import uncentered

DIVIDING = [
    case
    for case in CASES
    if all(state.codes for state in case.rule(**uncentered(case.main)).states())
    if any(not CODES[state.codes].signed for state in case.rule(**uncentered(case.main)).states())
]
STEPS, COASTING = 8, 4  # RAdam is SGD in its first steps


def moves(case: Case, dtype: Any, state_dtype: str, sizes: np.ndarray, **options: Any) -> np.ndarray:
    """The largest move of an element in each step: with gradients of these sizes, then with none but zeros."""
    random, found = np.random.default_rng(1), []
    p = Parameter(np.ones(len(sizes), dtype), grad_dtype="float32")
    numbers = uncentered({**case.main, "eps": 1e-8} if "eps" in case.main else case.main)
    optimizer = case.optimizer([p], **{**numbers, "weight_decay": 0.0}, state_dtype=state_dtype, **options)
    for step in range(STEPS + COASTING):
        before = p.data.copy()
        p.grad = (random.standard_normal(len(sizes)) * sizes * (step < STEPS)).astype(np.float32)
        optimizer.step()
        found.append(np.abs(p.data.astype(np.float64) - before.astype(np.float64)).max())
    return np.array(found)


@pytest.mark.parametrize("case", DIVIDING, ids=lambda case: case.name)
def test_noise_makes_no_step_much_longer_than_float32_has_it(case):
    """Over gradients of 1e-8 to 1e3 in each block, and where they become zero. It is 1.35 of it."""
    sizes = 10 ** np.random.default_rng(0).uniform(-8, 3, 16 * SMALL)
    exact, found = (moves(case, np.float32, state_dtype, sizes) for state_dtype in ("float32", "int8"))
    assert (found <= 2 * exact).all(), found / exact
