"""log2, exp2 and real_power: how near they are, what they give at the ends, and that every device gives the same."""

import dataclasses

import numpy as np
import pytest

import fusedopt
from cases import EXTREMES, Both, ordinary
from devices import DEVICES, NUMBA
from fusedopt.rules import Rule, Values, exp2, hyperparameter, larger, log2, real_power

REALS = ("float32", "float64")  # in which rules compute
each_real = pytest.mark.parametrize("real", [np.float32, np.float64])
exact = np.longdouble  # 64 bits of mantissa or more on Linux: a reference that is off by 2^-11 of float64's ulp
RANGE = {np.float32: 120, np.float64: 1000}  # of exponents, without denormal numbers, which have fewer bits


def ulps(actual, expected):
    """The distance in units in the last place of the expected value."""
    assert actual.dtype.type in RANGE
    unit = np.spacing(np.abs(expected).astype(actual.dtype))
    return np.abs(actual.astype(exact) - expected) / unit.astype(exact)


@pytest.mark.parametrize("base", [0.0, np.inf, 3.0])
def test_anything_to_the_power_of_zero_is_one(base):
    with np.errstate(invalid="ignore"):  # of the branch that is not taken, as in every backend
        assert real_power(np.full(1, base, np.float32), 0.0) == real_power(np.full(1, base), np.float64(0)) == 1


def uniform(low, high, real, seed=0):
    return np.random.default_rng(seed).uniform(low, high, 20_000).astype(real)


@each_real
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.7, 1.4), (0.999, 1.001)])
def test_log2_is_within_3_ulp(real, low, high):
    x = np.exp2(uniform(low, high, np.float64) * RANGE[real]).astype(real) if low < 0 else uniform(low, high, real)
    assert ulps(log2(x), np.log2(x.astype(exact))).max() <= 3  # measured: 2.94


@each_real
def test_exp2_is_within_an_ulp_and_a_quarter(real):
    x = uniform(-RANGE[real], RANGE[real], real)
    assert ulps(exp2(x), np.exp2(x.astype(exact))).max() <= 1.25  # measured: 1.10


@each_real
def test_real_power_loses_an_ulp_and_a_half_for_each_unit_of_the_exponent_of_two(real):
    base, exponent = uniform(1e-3, 4, real), uniform(-3, 3, real, seed=1)
    expected = base.astype(exact) ** exponent.astype(exact)
    bound = 1.5 * (1 + np.abs(exponent * np.log2(base)))  # measured: 1.36
    assert (ulps(real_power(base, exponent), expected) <= bound).all()


@each_real
def test_powers_of_two_are_exact_denormal_ones_too(real):
    info = np.finfo(real)
    exponents = np.arange(info.minexp - info.nmant, info.maxexp, dtype=real)
    powers = np.ldexp(real(1), exponents.astype(np.int32))
    assert powers[0] == info.smallest_subnormal
    np.testing.assert_array_equal(log2(powers), exponents)
    np.testing.assert_array_equal(exp2(exponents), powers)


@each_real
def test_ends_are_those_of_the_mathematics(real):
    with np.errstate(all="ignore"):
        x = np.array([0.0, -0.0, -1.0, -np.inf, np.inf, np.nan, 1.0], real)
        np.testing.assert_array_equal(log2(x), np.array([-np.inf, -np.inf, np.nan, np.nan, np.inf, np.nan, 0], real))
        x = np.array([-np.inf, np.inf, np.nan, 1e4, -1e4, 0.0, -0.0], real)
        np.testing.assert_array_equal(exp2(x), np.array([0, np.inf, np.nan, np.inf, 0, 1, 1], real))
        base, exponent = np.array([[0, 0.5], [0, -0.5], [np.inf, 0.5], [np.inf, -0.5], [1, 1e4], [-1, 0.5]], real).T
        expected = np.array([0, np.inf, np.inf, 0, 1, np.nan], real)
        np.testing.assert_array_equal(real_power(base, exponent), expected)


@each_real
def test_the_type_stays(real):
    for function in (log2, exp2, lambda x: real_power(x, 0.75)):
        assert function(np.ones(3, real)).dtype == real


@dataclasses.dataclass(frozen=True)
class Functions(Rule):
    """Each function in `update`, and its value in `scalars`."""

    lr: float = hyperparameter(1.0, "(-inf, inf)")
    exponent: float = hyperparameter(0.75, "(-inf, inf)")

    state = ("log", "power", "log_of_lr", "exp_of_lr", "power_of_lr")

    def scalars(self, step, a):
        return Values(
            log=log2(self.lr), exp=exp2(self.lr), power=real_power(self.lr, self.exponent * step), used=self.exponent
        )

    def update(self, p, g, s, c):
        kept = Values(log_of_lr=c.log, exp_of_lr=c.exp, power_of_lr=c.power)
        return exp2(g), Values(log=log2(p), power=real_power(larger(p, 0.0), c.used), **vars(kept))


class Optimizer(fusedopt.Optimizer, rule=Functions):
    pass


@pytest.mark.parametrize("device", [*DEVICES, NUMBA], indirect=True, scope="module")
def test_the_bits_are_the_same_on_every_device_in_update_and_in_scalars(device):
    with np.errstate(all="ignore"):
        arrays = [np.concatenate([EXTREMES, 100 * ordinary(1000, "float64", 1)]).astype(dtype) for dtype in REALS]
        more = [np.concatenate([EXTREMES, 10 * ordinary(1000, "float64", 2)]).astype(dtype) for dtype in REALS]
        finite = EXTREMES[np.isfinite(EXTREMES)]
    few = [np.ones(1)]
    groups = [({}, arrays), *(({"lr": lr, "exponent": e}, few) for lr in finite for e in (0.75, -1.5))]
    both = Both(Optimizer, *groups, array=device.array)
    gradients = [*more, *few * (len(groups) - 1)]
    for _ in range(2):
        both.step(gradients)
        both.compare(device.host)
