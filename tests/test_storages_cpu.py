"""Steps on the CPU in every storage: the rule as a plain function on float32 values, which are then kept as the storage
says by `plain_formats`; and numba's loops with NumPy's bits."""

import os

import ml_dtypes  # noqa: F401  # makes "bfloat16" a name that NumPy knows
import numpy as np
import pytest

import fusedopt
import plain_formats
from cases import CASES, Plain, assert_same_bits, extreme, ordinary
from devices import NUMBA
from fusedopt.eight_bits import CODES, encoded_constant
from fusedopt.storage import SMALL, Kept, storage_of
from storages import uncentered

# A title, the parameter's and the gradient's dtype, and the options: each way to keep anything is in some.
STORAGES = {
    "master": ("bfloat16", "bfloat16", {"master_weights": "float32", "state_dtype": "float32"}),
    "master of float16": ("float16", "float32", {"master_weights": "float32", "state_dtype": "float16"}),
    "split": ("bfloat16", "float32", {"master_weights": "split", "state_dtype": "bfloat16"}),
    "split24": ("bfloat16", "bfloat16", {"master_weights": "split24"}),
    "split24 at random": ("bfloat16", "bfloat16", {"master_weights": "split24", "stochastic_rounding": True}),
    "kahan": ("bfloat16", "bfloat16", {"kahan": True, "state_dtype": "float32"}),
    "kahan in float16": ("float16", "float16", {"kahan": True}),
    "at random": ("bfloat16", "bfloat16", {"stochastic_rounding": True, "seed": 2**40 + 3}),
    "float16 at random": ("float16", "float16", {"stochastic_rounding": True, "seed": 9}),
    "int8": ("float32", "float32", {"state_dtype": "int8"}),
    "split24 and int8": ("bfloat16", "float32", {"master_weights": "split24", "state_dtype": "int8"}),
}
# What compiles fastest and has everything: with numba all rules have these, Adam and SGD all.
WITH_NUMBA = ("master", "split24 and int8")
SIZES = (1, 3, 127, 128, 129, SMALL - 1, SMALL, SMALL + 1)
each_storage = pytest.mark.parametrize("storage", STORAGES)


def options_of(case, storage):
    """The options of a case in a storage, with those states in float32 that cannot be kept in 8 bits."""
    options, main = STORAGES[storage][2], case.main
    if options.get("state_dtype") == "int8":
        main = uncentered(main)
        states = case.rule(**main).states()
        options = {**options, "state_dtype": {s.name: "int8" if s.codes else "float32" for s in states}}
    return {**main, **options}


class Stored(Plain):
    """The plain rule of one parameter whose values are kept, after each step, as its storage says.

    Attributes:
        arrays: What is kept, by the keys of `Optimizer.state`, and "p".
    """

    def __init__(self, rule, parameter, gradient, number):
        super().__init__(rule, parameter.astype(np.float32))
        self.storage, self.number = storage_of(rule, parameter.dtype.name, gradient, parameter.size), number
        self.arrays = {"p": parameter}
        if rule.kahan:  # with a compensation of zero: -0 is 0 then
            self.parameter += np.float32(0)
        for name, kept in zip(rule.kept_states, self.storage.states, strict=True):
            if kept.codes:
                code, scale = encoded_constant(float(self.states[name].flat[0]), kept)
                codes = np.full(parameter.size, code, np.uint8)
                scales = np.full(-(-parameter.size // 128), scale, np.float32)
                self.states[name] = plain_formats.decoded(codes, scales, CODES[kept.codes])
            else:
                self.states[name] = self.states[name].astype(kept.dtype).astype(np.float32)

    def update(self, gradient):
        super().update(gradient)
        with np.errstate(all="ignore"):
            self.parameter = self._kept("p", self.parameter, self.storage.parameter, 0)
            for k, (name, kept) in enumerate(zip(self.rule.kept_states, self.storage.states, strict=True)):
                self.states[name] = self._kept(name, self.states[name], kept, k + 1)

    def _kept(self, name, values, kept: Kept, stream):
        """What comes back of values, which are left in `arrays`."""
        arrays, rule = self.arrays, self.rule
        noise = None
        if kept.stochastic:
            noise = plain_formats.noise(rule.seed, self.step, self.number, stream, values.size)
        if kept.codes:
            arrays[name], arrays[f"{name}_scale"] = plain_formats.encoded(values, CODES[kept.codes], noise)
            return plain_formats.decoded(arrays[name], arrays[f"{name}_scale"], CODES[kept.codes])
        if kept.finer in ("split", "split24"):
            arrays[name], arrays["remainder"] = plain_formats.split(values, kept.beside, noise)
            return plain_formats.joined(arrays[name], arrays["remainder"])
        arrays[name] = (
            values.astype(kept.dtype) if noise is None else plain_formats.stochastic(values, kept.dtype, noise)
        )
        back = arrays[name].astype(np.float32)
        if kept.finer == "float32":
            arrays["master_param"] = back = values
        elif kept.finer == "kahan":
            arrays["compensation"] = (values - back).astype(kept.dtype)
            back = back + arrays["compensation"].astype(np.float32)
        return back


def parameters_of(sizes, dtype, grad_dtype, values):
    return [fusedopt.Parameter(values(size, dtype, seed), grad_dtype=grad_dtype) for seed, size in enumerate(sizes)]


def arrays_of(optimizer, parameter):
    return {"p": parameter.data} | {n: a for n, a in optimizer.state[parameter].items() if isinstance(a, np.ndarray)}


def three_steps(case, storage, sizes, values):
    """What an optimizer keeps after each of three steps, and gradients that they took."""
    dtype, grad_dtype, _ = STORAGES[storage]
    parameters = parameters_of(sizes, dtype, grad_dtype, values)
    optimizer = case.optimizer(parameters, **options_of(case, storage))
    for step in range(3):
        gradients = [values(size, grad_dtype, 10 * step + seed) for seed, size in enumerate(sizes)]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        yield gradients, [arrays_of(optimizer, parameter) for parameter in parameters]


def same(found, expected, what):
    for name in expected:
        with np.errstate(invalid="ignore"):
            assert_same_bits(found[name].reshape(expected[name].shape), expected[name], f"{what}: {name}")


@each_storage
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_a_step_is_the_plain_rules_on_what_is_kept(case, storage):
    values = ordinary if case.unlike.keys() & {"infinity stays", "states stay finite"} else extreme
    against_the_plain_rule(case, storage, (1, 129, SMALL + 1), values)


def against_the_plain_rule(case, storage, sizes, values):
    dtype, grad_dtype, _ = STORAGES[storage]
    rule = case.rule(**options_of(case, storage))
    plains = [Stored(rule, values(n, dtype, seed), grad_dtype, seed) for seed, n in enumerate(sizes)]
    for gradients, found in three_steps(case, storage, sizes, values):
        for plain, gradient, arrays in zip(plains, gradients, found, strict=True):
            plain.update(gradient)
            same(arrays, plain.arrays, f"{plain.parameter.size} elements")


ADAM = next(case for case in CASES if case.name == "Adam")


@each_storage
def test_so_it_is_at_the_edges_of_blocks_and_of_small_parameters(storage):
    against_the_plain_rule(ADAM, storage, SIZES, ordinary)


@pytest.mark.parametrize("storage", ["split", "split24 and int8"])
def test_pieces_and_threads_change_no_bit(storage, monkeypatch):
    """Of parameters of 64 Ki elements and one more or less."""
    found = []
    for backend, threads in (("numpy", "1"), ("numpy", "2"), ("numpy", "3")):
        monkeypatch.setenv("FUSEDOPT_NUM_THREADS", threads)
        monkeypatch.setenv("FUSEDOPT_BACKEND", backend)
        *_, (_, arrays) = three_steps(ADAM, storage, (65535, 65536, 65537, 3 * 65536 + 5), ordinary)
        found.append(arrays)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            same(two, one, storage)
    whole = Stored(ADAM.rule(**options_of(ADAM, storage)), ordinary(65537, STORAGES[storage][0], 2), "float32", 2)
    for step in range(3):
        whole.update(ordinary(65537, STORAGES[storage][1], 10 * step + 2))
    same(found[0][2], whole.arrays, storage)


def test_states_may_be_kept_in_ways_of_their_own():
    """Also a float64 parameter's in float32."""
    mixed = {"state_dtype": {"exp_avg": "int8", "exp_avg_sq": "bfloat16"}, "stochastic_rounding": True}
    parameter = fusedopt.Parameter(ordinary(SMALL, "bfloat16", 1))
    optimizer = fusedopt.Adam([parameter], **mixed)
    parameter.grad = ordinary(SMALL, "bfloat16", 2)
    optimizer.step()
    assert [optimizer.state[parameter][n].dtype.name for n in ("exp_avg", "exp_avg_sq")] == ["uint8", "bfloat16"]
    parameter = fusedopt.Parameter(ordinary(9, "float64", 1))
    optimizer = fusedopt.Adam([parameter], state_dtype="float32")
    parameter.grad = ordinary(9, "float64", 2)
    optimizer.step()
    assert optimizer.state[parameter]["exp_avg"].dtype == np.float32
    assert parameter.data.dtype == np.float64


# --- numba

SOME = [
    (case, storage) for case in CASES for storage in STORAGES if storage in WITH_NUMBA or case.name in ("Adam", "SGD")
]


@pytest.mark.parametrize("backend", [NUMBA])
@pytest.mark.parametrize(("case", "storage"), [pytest.param(c, s, id=f"{c.name}-{s}") for c, s in SOME])
def test_numbas_loops_have_numpys_bits(case, storage, backend):
    sizes = (1, 129, SMALL + 1, 65537) if case is ADAM else (1, 129, SMALL + 1)
    found = {}
    for name in ("numpy", backend):
        os.environ["FUSEDOPT_BACKEND"] = name
        found[name] = [arrays for _, arrays in three_steps(case, storage, sizes, extreme)]
    for one, other in zip(found["numpy"], found[backend], strict=True):
        for expected, arrays in zip(one, other, strict=True):
            same(arrays, expected, storage)


@pytest.mark.parametrize("backend", [NUMBA])
@pytest.mark.parametrize("options", [{"grad_centralization": True}, {"clip_norm": 0.5}], ids=str)
def test_so_they_have_with_sums_before_them(options, backend):
    shapes, found = ((5, 1000), (3, 129), (7,)), {}
    for name in ("numpy", backend):
        os.environ["FUSEDOPT_BACKEND"] = name
        parameters = [fusedopt.Parameter(np.ones(shape, "bfloat16")) for shape in shapes]
        optimizer = fusedopt.Adam(parameters, master_weights="split", state_dtype="int8", **options)
        for step in range(2):
            for seed, parameter in enumerate(parameters):
                parameter.grad = ordinary(parameter.data.size, "bfloat16", 10 * step + seed).reshape(
                    parameter.data.shape
                )
            optimizer.step()
        found[name] = [arrays_of(optimizer, parameter) for parameter in parameters]
    for one, other in zip(found["numpy"], found[backend], strict=True):
        same(other, one, str(options))
