"""numba's loops against the rule as a plain function, to the bit; their machine code; and when they are chosen."""

import functools
import itertools
import os
import platform
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedopt
from cases import DTYPES, SIZES, Both, each_case, each_combination, extreme, ordinary
from devices import NUMBA
from fusedopt import backends, rules
from fusedopt.backends.numpy import NumpyPlan
from fusedopt.storage import plain as plainly_kept
from fusedopt.storage import storage_of
from fusedopt.tracing import trace
from random_rules import EXCHANGES, bodies, optimizer_of, scales, some_values, uniform
from step_checks import NAdam

numba_backend = pytest.importorskip("fusedopt.backends.numba")
PIECE, NumbaPlan = numba_backend.PIECE, numba_backend.NumbaPlan


@pytest.fixture(params=[NUMBA], autouse=True)
def chosen(request):
    """Every test here asks for numba; see devices.backend_for."""


# --- bits


def three_steps(case, options, dtype):
    both = Both(case.optimizer, (options, [extreme(size, dtype, 1) for size in SIZES]))
    assert isinstance(backends.backend_of(np.zeros(1)).plan([]), NumbaPlan)
    for step in range(3):
        both.step([extreme(size, dtype, 10 + step) for size in SIZES])
        both.compare()
        both.replace_states(20 + 5 * step)


@each_combination(own=True)
def test_three_steps_on_extreme_values_are_the_plain_rules_to_the_bit(case, options):
    three_steps(case, options, "float32")


@each_case
@pytest.mark.parametrize("dtype", DTYPES)
def test_so_they_are_in_every_dtype(case, dtype):
    three_steps(case, case.main, dtype)


@pytest.mark.parametrize("size", [1, PIECE, PIECE + 1, 5 * PIECE + 3])
@pytest.mark.parametrize("threads", ["1", "2", "3"])
def test_pieces_and_threads_change_no_bit(size, threads, monkeypatch):
    monkeypatch.setenv("FUSEDOPT_NUM_THREADS", threads)
    sizes = (size, 3, 0, size)
    both = Both(fusedopt.Adam, ({"weight_decay": 0.1}, [extreme(size, "float32", 1) for size in sizes]))
    for step in range(2):
        both.step([extreme(size, "float32", 5 + step) for size in sizes])
    both.compare()


@pytest.mark.parametrize("grad_scale", [1, 0.1, 3e-30, -1.0, 0.0, np.inf, np.nan])
@each_case
def test_gradients_are_divided_by_their_scale(case, grad_scale):
    both = Both(case.optimizer, (case.main, [extreme(size, "float32", 1) for size in SIZES]))
    both.step([extreme(size, "float32", 10) for size in SIZES], grad_scale)
    both.compare()


def test_groups_dtypes_flags_and_histories_are_each_their_own():
    """Rows of one table that differ in loop, in constants and in the number of states."""
    groups = [
        ({"lr": lr, "amsgrad": amsgrad}, [ordinary(40, dtype, seed) for seed in range(3)])
        for lr, amsgrad, dtype in itertools.product((0.1, 0.2), (False, True), ("float32", "float64", "bfloat16"))
    ]
    both = Both(fusedopt.Adam, *groups)
    for step in range(3):
        gradients = [ordinary(40, plain.parameter.dtype.name, step) for plain in both.plains]
        for number, parameter in enumerate(both.parameters):
            parameter.grad = None if (step, number % 3) == (1, 1) else gradients[number]
            if parameter.grad is not None:
                both.plains[number].update(gradients[number], 1.0)
        both.optimizer.step()
    both.compare()


@settings(max_examples=60, deadline=None)
@given(bodies(), uniform, uniform, scales, st.sampled_from(("float32", *DTYPES)), some_values, st.integers(0, 1000))
def test_random_rules_are_the_plain_function(body, one, other, scale, dtype, values, seed):
    both = Both(optimizer_of([body]), ({"one": one, "other": other}, [values(40, dtype, seed)]))
    for step in range(2):
        both.step([values(40, dtype, seed + 1 + step)], scale)
        both.compare()


@pytest.mark.parametrize("body", EXCHANGES)
def test_results_may_stand_in_each_others_place(body):
    both = Both(optimizer_of([body]), ({}, [ordinary(PIECE + 5, "float32", 1)]))
    for step in range(2):
        both.step([ordinary(PIECE + 5, "float32", 2 + step)])
        both.compare()


def test_scalar_state_is_advanced():
    class Optimizer(fusedopt.Optimizer, rule=NAdam): ...

    both = Both(Optimizer, ({}, [ordinary(17, "float32", 1)]))
    for step in range(3):
        both.step([ordinary(17, "float32", 2 + step)])
        both.compare()


# --- machine code


IN_VECTORS = {
    "float32": plainly_kept("float32", "float32", ("float32",) * 3),
    "float16": plainly_kept("float16", "float16", ("float16",) * 3),
    "bfloat16": plainly_kept("bfloat16", "bfloat16", ("bfloat16",) * 3),
    "split": storage_of(rules.Adam(amsgrad=True, master_weights="split"), "bfloat16", "bfloat16", 8192),
    "split24": storage_of(
        rules.Adam(amsgrad=True, master_weights="split24", stochastic_rounding=True), "bfloat16", "bfloat16", 8192
    ),
    "int8": storage_of(rules.Adam(amsgrad=True, state_dtype="int8"), "float32", "float32", 8192),
}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86's instructions")
@pytest.mark.parametrize("stored", IN_VECTORS)
def test_the_loop_is_made_of_vector_instructions(stored):
    """Also with many arrays, most of them written, which for all LLVM knows could overlap."""
    traced, storage = trace(rules.Adam(amsgrad=True)), IN_VECTORS[stored]
    loop, _ = numba_backend.compiled(traced, (False, False), storage, False)
    (text,) = loop.inspect_asm().values()
    assert re.search(r"v?sqrtps", text)  # of four and more; vsqrtss would be of one
    assert bool(re.search(r"v?pmuludq", text)) == storage.draws  # Philox's products
    assert not re.search(r"\bv?fn?m(add|sub)\w*\b", text), "rounded once where NumPy rounds twice"


# --- choice


def test_it_is_chosen_by_itself(monkeypatch):
    monkeypatch.delenv("FUSEDOPT_BACKEND")
    assert isinstance(backends.backend_of(np.zeros(1)).plan([]), NumbaPlan)
    monkeypatch.setenv("FUSEDOPT_BACKEND", "numpy")
    assert isinstance(backends.backend_of(np.zeros(1)).plan([]), NumpyPlan)


BROKEN = "raise ImportError('Numba needs NumPy 2.4 or less. Got NumPy 2.9.')"


@pytest.mark.parametrize(
    ("numba", "variables", "problem"),
    [
        ("", {"NUMBA_DISABLE_JIT": "1"}, "numba compiles nothing while NUMBA_DISABLE_JIT is set: unset it."),
        ("", {"NUMBA_CPU_NAME": "generic"}, "numba needs a processor with F16C, or NUMBA_CPU_NAME to be unset."),
        (BROKEN, {}, "numba cannot be imported (Numba needs NumPy 2.4 or less. Got NumPy 2.9.): pip install --upgrade"),
    ],
)
def test_where_it_cannot_work_that_is_said(numba, variables, problem, tmp_path):
    """A step on NumPy after a warning; an error where numba is asked for."""
    if numba:
        (tmp_path / "numba.py").write_text(numba)
    code = "import numpy, fusedopt; o = fusedopt.SGD([fusedopt.Parameter(numpy.ones(3))]); print(type(o).__name__)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), **variables}
    for asked, status in (("numpy", 0), ("auto", 0), ("numba", 1)):
        command = [sys.executable, "-c", code]
        found = subprocess.run(
            command, env={**environment, "FUSEDOPT_BACKEND": asked}, capture_output=True, text=True, timeout=100
        )
        assert found.returncode == status, found.stderr
        expected = {"numpy": "", "auto": "RuntimeWarning: Steps on the CPU are NumPy's, which are slower: " + problem}
        assert expected.get(asked, f"RuntimeError: FUSEDOPT_BACKEND=numba cannot work here: {problem}") in found.stderr
        assert (found.stdout, "Warning" in found.stderr) == ("SGD\n" * (not status), asked == "auto")


def test_where_it_is_not_installed_numpy_steps(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    for cached in (backends.numba_problem, backends._cpu_backend):
        monkeypatch.setattr(backends, cached.__name__, functools.cache(cached.__wrapped__))
    with pytest.raises(RuntimeError, match=re.escape("numba is not installed: pip install 'fusedopt[numba]'")):
        fusedopt.SGD([fusedopt.Parameter(np.ones(3))])
    monkeypatch.delenv("FUSEDOPT_BACKEND")
    assert isinstance(backends.backend_of(np.zeros(1)).plan([]), NumpyPlan)


# --- threads and addresses


def test_as_many_threads_work_as_there_are_tasks(monkeypatch):
    asked = []
    monkeypatch.setattr(numba_backend, "on_all_threads", lambda work, pieces: asked.append(pieces) or work())
    monkeypatch.setenv("FUSEDOPT_NUM_THREADS", "3")
    for sizes in ([8 * PIECE], [PIECE // 2] * 16, [7 * PIECE], [8] * 100):
        both = Both(fusedopt.SGD, ({}, [ordinary(size, "float32", 1) for size in sizes]))
        both.step([ordinary(size, "float32", 2) for size in sizes])
        both.compare()
    assert asked == [3, 3, 1, 1]


def test_moved_gradients_are_read_where_they_are_piece_by_piece():
    both = Both(fusedopt.SGD, ({}, [ordinary(size, "float32", 1) for size in (3, 2 * PIECE + 5)]))
    gradients = [ordinary(size, "float32", 2) for size in (3, 2 * PIECE + 5)]
    group = SimpleNamespace(rule=rules.SGD())
    spans = [
        SimpleNamespace(group=group, size=gradient.size, shape=gradient.shape, number=0,
                        storage=plainly_kept("float32", "float32", ()),
                        parameter=parameter.data, gradient=np.zeros_like(gradient), states=[], counters=np.zeros(2),
                        parameters=1)
        for parameter, gradient in zip(both.parameters, gradients)
    ]  # fmt: skip
    plan = backends.cpu_backend().plan(spans)
    plan.move([gradient.ctypes.data for gradient in gradients])
    plan.step(None, None)
    for plain, gradient in zip(both.plains, gradients):
        plain.update(gradient, 1.0)
    both.compare()
