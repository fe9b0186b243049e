"""The codes that `benchmarks/state_codes.py` compares: what each must keep, and that the chosen one is its formulas."""

from __future__ import annotations

import numpy as np
import pytest

import state_codes
from state_code_candidates import (
    CHOSEN,
    SIGNED,
    UNSIGNED,
    Candidate,
    Code,
    candidates,
    tapered,
    tapered_magnitudes,
    tapered_numbers,
)

CODES = [pytest.param(candidate, id=candidate.name) for candidate in candidates()]


def kept(code: Code, values: list[float], noise: float) -> list[float]:
    block = np.resize(np.array(values, np.float32), code.block)
    found = code.decode(*code.encode(block, np.full(code.block, noise, np.float32)))
    return [float(value) for value in found[: len(values)]]


@pytest.mark.parametrize("candidate", CODES)
@pytest.mark.parametrize("noise", [0.0, 0.999])
def test_a_code_keeps_zero_and_never_makes_a_second_moment_zero(candidate: Candidate, noise: float) -> None:
    for code in (candidate.m, candidate.v):
        assert kept(code, [0.0, 0.0], noise) == [0, 0]
        assert kept(code, [1.0, 0.0], noise)[1] == 0
    assert kept(candidate.v, [1.0, 1e-30, 1e-12], noise)[1] > 0


@pytest.mark.parametrize("candidate", CODES)
@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_a_block_with_what_is_not_finite_is_all_nan(candidate: Candidate, poison: float) -> None:
    assert np.isnan(kept(candidate.m, [1.0, poison, 0.0], 0.5)).all()


@pytest.mark.parametrize("candidate", [code for code in CODES if "stochastic" in str(code.id)])
def test_a_stochastic_code_is_right_in_the_mean(candidate: Candidate) -> None:
    """Of 2^15 draws of 0.5 + 0.003: the mean's deviation is 2^-8.5 of a step, a step 6 % at most, so 5 are 1e-3."""
    rng = np.random.default_rng(0)
    values = np.full(1 << 15, 0.503, np.float32)
    values[:: candidate.m.block] = 1  # each block's scale
    for code in (candidate.m, candidate.v):
        found = code.decode(*code.encode(values, rng.random(values.size, dtype=np.float32)))
        error = abs(float(found[values < 1].mean(dtype=np.float64)) - 0.503)
        assert error < 1e-3


@pytest.mark.parametrize("count", [SIGNED, UNSIGNED])
def test_a_kernels_formulas_are_the_chosen_code(count: int) -> None:
    levels, all_noise = tapered(count), np.arange(1 << 16, dtype=np.int32)
    assert len(levels) == count + 1
    assert levels[-1] == 1
    assert (np.diff(levels) > 0).all()
    for noise in (0, 65535):
        drawn = np.full(count + 1, noise, np.int32)
        np.testing.assert_array_equal(tapered_numbers(levels, drawn, count), np.arange(count + 1))
    over = np.full(2, 1 + 2**-23, np.float32)  # what x * (1 / scale) can be for the largest x
    np.testing.assert_array_equal(tapered_numbers(over, all_noise[[0, -1]], count), count)
    for low, high in zip(levels[1:-1:7], levels[2::7]):
        between = np.full(1 << 16, 0.7 * low + 0.3 * high, np.float32)
        mean = tapered_magnitudes(tapered_numbers(between, all_noise, count), count).mean(dtype=np.float64)
        assert abs(mean - float(between[0])) <= 2**-17 * float(high - low)


def test_below_the_smallest_magnitude_m_is_right_in_the_mean_and_v_is_the_smallest() -> None:
    all_noise = np.arange(1 << 16, dtype=np.int32)
    m, v = (tapered(count)[1] for count in (SIGNED, UNSIGNED))
    numbers = tapered_numbers(np.full(1 << 16, 0.3 * m, np.float32), all_noise, SIGNED)
    assert set(numbers) == {0, 1}
    assert abs(numbers.mean() - 0.3) < 2**-15
    assert (tapered_numbers(np.full(1 << 16, 1e-3 * v, np.float32), all_noise, UNSIGNED) == 1).all()
    assert (m / v**0.5) < 1.25  # so no noise of m is divided by a root of v far smaller than itself


def test_the_chosen_code_follows_adam() -> None:
    """A tenth of the update's length; nearest rounding of an eight-bit float is off by more after 100 steps."""
    few = [candidate for candidate in candidates() if candidate.name in (CHOSEN, "E5M3, nearest")]
    rows = list(state_codes.errors_of_made((0.9, 0.999), 100, few))
    error = {(row["code"], row["gradients"]): row["error"] for row in rows if row["step"] == 100}
    assert error[CHOSEN, "spread 1"] < 0.13 < error["E5M3, nearest", "spread 1"]
