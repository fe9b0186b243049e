"""The NumPy backend against the rule as a plain function, to the bit; and float32 against float64 and against torch.

Random rules run on the other devices too.
"""

import os
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from numpy.lib.mixins import NDArrayOperatorsMixin

import fusedopt
from cases import (
    DTYPES,
    SIZES,
    Both,
    assert_same_bits,
    each_case,
    each_case_with,
    each_combination,
    each_kind,
    extreme,
    ordinary,
)
from devices import DEVICES, NUMBA
from fusedopt import cuda_text, rules
from fusedopt.backends import numpy as numpy_backend
from fusedopt.backends import threads
from fusedopt.backends.numpy import BLOCK
from fusedopt.backends.schedule import schedule, uniform_conditions
from fusedopt.rules import Values
from fusedopt.tracing import trace
from random_rules import EXCHANGES, NUMBERS, Body, bodies, optimizer_of, scales, some_values, uniform

# --- bits


@each_combination(own=True)
@pytest.mark.parametrize("dtype", DTYPES)
def test_three_steps_on_extreme_values_are_the_plain_rules_to_the_bit(case, options, dtype):
    both = Both(case.optimizer, (options, [extreme(size, dtype, 1) for size in SIZES]))
    for step in range(3):
        both.step([extreme(size, dtype, 10 + step) for size in SIZES])
        both.compare()
        both.replace_states(20 + 5 * step)


@each_kind
@pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 1, 3 * BLOCK + 3])
@pytest.mark.parametrize("threads", ["1", "2", "3"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_blocks_and_threads_change_no_bit(case, size, threads, dtype, monkeypatch):
    monkeypatch.setenv("FUSEDOPT_NUM_THREADS", threads)
    both = Both(case.optimizer, (case.main, [extreme(size, dtype, 1), extreme(3, dtype, 1), extreme(size, dtype, 2)]))
    for step in range(2):
        both.step([extreme(values.size, dtype, 5 + step) for values in both.parameters])
    both.compare()


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_the_number_of_threads_is_a_whole_number(text, monkeypatch):
    monkeypatch.setenv("FUSEDOPT_NUM_THREADS", text)
    both = Both(fusedopt.SGD, ({}, [np.zeros(BLOCK + 1, np.float32)]))
    with pytest.raises(ValueError, match=f"FUSEDOPT_NUM_THREADS must be a whole number from 1, got '{text}'"):
        both.step([np.zeros(BLOCK + 1, np.float32)])


@pytest.fixture
def submissions(monkeypatch):
    """The functions that the pool has been given; of 64 threads, its own."""
    functions = []

    class Pool(ThreadPoolExecutor):
        def submit(self, function, *arguments):
            functions.append(function)
            return super().submit(function, *arguments)

    monkeypatch.setenv("FUSEDOPT_NUM_THREADS", "64")
    monkeypatch.setattr(threads, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(threads, "_pool", None)
    monkeypatch.setattr(threads, "_pool_size", 0)
    yield functions
    threads._pool.shutdown()


def test_no_more_threads_work_than_there_are_pieces(submissions):
    both = Both(fusedopt.SGD, ({}, [ordinary(BLOCK + 1, "float32", 1)]))
    for step in range(2):
        both.step([ordinary(BLOCK + 1, "float32", 2 + step)])
        assert len(submissions) == step + 1
    both.compare()


def test_an_interrupted_step_waits_for_its_helpers(submissions):
    begun, done = threading.Event(), threading.Event()

    def work():
        if threading.current_thread() is threading.main_thread():
            assert begun.wait(10)
            raise KeyboardInterrupt
        begun.set()
        time.sleep(0.1)  # long enough to be caught at work
        done.set()

    with pytest.raises(KeyboardInterrupt):
        threads.on_all_threads(work, 2)
    assert done.is_set()
    assert len(submissions) == 1


@pytest.mark.skipif(threads._getcpu is None or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two cores")
def test_helpers_are_kept_off_the_callers_core_before_they_are_woken(submissions, monkeypatch):
    cores = os.sched_getaffinity(0)
    for core in [*sorted(cores)[:2]] * 2:
        monkeypatch.setattr(threads, "_getcpu", lambda core=core: core)
        found, begun = [], threading.Barrier(2)

        def work(found=found, begun=begun):
            begun.wait(10)
            if threading.current_thread() is not threading.main_thread():
                found.append(os.sched_getaffinity(0))

        for _ in range(2):  # the first one may start the helper
            threads.on_all_threads(work, 2)
        assert found[-1] == cores - {core}
    assert os.sched_getaffinity(0) == cores


def test_an_error_in_a_helper_is_the_steps(submissions, monkeypatch):
    raised, scratch = threading.Event(), numpy_backend.scratch_slots

    def failing_elsewhere(*arguments):
        if threading.current_thread() is threading.main_thread():
            assert raised.wait(10)  # so that the helper gets a piece
            return scratch(*arguments)
        raised.set()
        raise MemoryError("in a helper")

    optimizer = Both(fusedopt.Adam, ({}, [np.ones(BLOCK + 1, np.float32)])).optimizer
    (parameter,) = optimizer.parameters()
    parameter.grad = np.ones(BLOCK + 1, np.float32)
    monkeypatch.setattr(numpy_backend, "scratch_slots", failing_elsewhere)
    with pytest.raises(MemoryError, match="in a helper"):
        optimizer.step()
    assert float(optimizer.state[parameter]["step"]) == 0


@each_case
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grad_scale", [1, 2.0, 0.1, 65536.0, 3e-30, -1.0, 0.0, np.inf, np.nan])
def test_gradients_are_divided_by_their_scale(case, dtype, grad_scale):
    both = Both(case.optimizer, (case.main, [extreme(4097, dtype, 1)]))
    for step in range(2):
        both.step([extreme(4097, dtype, 5 + step)], grad_scale)
    both.compare()


@each_case
@pytest.mark.parametrize("found_inf", [1, 2.0, -1, np.nan, np.inf, np.array(1, np.float32)])
def test_a_found_infinity_changes_and_counts_nothing(case, found_inf):
    both = Both(case.optimizer, (case.main, [extreme(17, "float32", 1)]))
    both.step([extreme(17, "float32", 2)])
    for _ in range(2):
        both.parameters[0].grad = np.full(17, np.inf, np.float32)
        both.optimizer.step(found_inf=found_inf)
        both.compare()
    both.step([extreme(17, "float32", 3)])  # with the step number that comes next
    both.compare()


@each_case
@pytest.mark.parametrize("found_inf", [None, 0, -0.0, False, np.array(0, np.float32)])
def test_without_a_found_infinity_the_step_is_taken(case, found_inf):
    both = Both(case.optimizer, (case.main, [extreme(17, "float32", 1)]))
    for step in range(2):
        both.parameters[0].grad = extreme(17, "float32", step)
        both.plains[0].update(extreme(17, "float32", step))
        both.optimizer.step(found_inf=found_inf)
    both.compare()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_scale_and_found_infinity_may_be_arrays_of_one(shape):
    both = Both(fusedopt.SGD, ({"lr": 1.0}, [np.zeros(1, np.float32)]))
    both.parameters[0].grad = np.ones(1, np.float32)
    both.optimizer.step(grad_scale=np.full(shape, 2, np.float32), found_inf=np.zeros(shape, np.float32))
    assert both.parameters[0].data == -0.5


# --- distances


class WithError(NDArrayOperatorsMixin):
    """Exact values, and how far from them float32 arithmetic can be: each operation passes on its operands' errors and
    adds half an ulp of its own (running error analysis: Higham, Accuracy and Stability of Numerical Algorithms, 3.3).
    """

    UNIT, SMALLEST = 2.0**-24, 2.0**-150  # half an ulp of 1, and of a denormal number

    def __init__(self, exact: Any, error: Any = 0.0) -> None:
        self.exact, self.error = np.asarray(exact, np.float64), np.asarray(error, np.float64)

    @classmethod
    def rounded(cls, exact: Any, error: Any = 0.0) -> "WithError":
        return cls(exact, error + cls.UNIT * (np.abs(exact) + error) + cls.SMALLEST)

    @classmethod
    def of(cls, value: Any) -> "WithError":
        return value if isinstance(value, cls) else cls(value, np.abs(np.float64(np.float32(value)) - value))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any) -> "WithError":
        x, *rest = (self.of(value) for value in inputs)
        exact = ufunc(x.exact, *(y.exact for y in rest))
        if exact.dtype == bool:
            error = x.error + rest[0].error
            undecided = (error > 0) & (np.abs(x.exact - rest[0].exact) <= error) & (x is not rest[0])
            return WithError(exact, undecided)  # an error of 1: the other answer
        if ufunc in (np.negative, np.absolute):
            return WithError(exact, x.error)
        if ufunc is np.sqrt:
            return self.rounded(exact, np.minimum(np.sqrt(x.error), x.error / np.where(exact > 0, exact, 1e-300)))
        [y] = rest
        if ufunc in (np.add, np.subtract):
            return self.rounded(exact, x.error + y.error)
        if ufunc is np.multiply:
            return self.rounded(exact, np.abs(x.exact) * y.error + np.abs(y.exact) * x.error + x.error * y.error)
        assert ufunc is np.divide
        return self.rounded(exact, (x.error + np.abs(exact) * y.error) / (np.abs(y.exact) - y.error))

    def __array_function__(self, function: Any, types: Any, inputs: Any, keywords: Any) -> "WithError":
        assert function is np.where
        condition, x, y = (self.of(value) for value in inputs)
        undecided = (condition.error > 0) & (np.abs(condition.exact) <= condition.error)
        either = np.maximum(x.error, y.error) + np.abs(x.exact - y.exact)
        error = np.where(undecided, either, np.where(condition.exact, x.error, y.error))
        return WithError(np.where(condition.exact, x.exact, y.exact), error)


def scalars_of(rule, step, scalar_state):
    """What `scalars` gives for `update`, in float64, and the scalar state after it."""
    with np.errstate(all="ignore"):
        scalars = vars(rule.in_float64().scalars(np.float64(step), Values(**scalar_state)))
    advanced = {name: scalars.pop(name) for name in scalar_state}
    return scalars, advanced


@each_combination("float32 is near float64")
def test_float32_is_as_near_to_float64_as_its_operations_allow(case, options):
    size = 4097
    parameter, gradient = ordinary(size, "float32", 1), ordinary(size, "float32", 2)
    both = Both(case.optimizer, (options, [parameter]))
    rule = case.rule(**options)
    states = {state.name: np.full(size, np.float32(rule.initial(state)), np.float64) for state in rule.states()}
    scalar_state = dict(rule.scalar_state)
    for step in range(1, 4):
        scalars, scalar_state = scalars_of(rule, step, scalar_state)
        p, new = rule.update(
            WithError(both.plains[0].parameter),
            WithError(gradient),
            Values(**{name: WithError(array) for name, array in states.items()}),
            Values(**{name: WithError.of(value) for name, value in scalars.items()}),
        )
        both.step([gradient])
        for name, bound in {"parameter": p, **vars(new)}.items():
            actual = both.parameters[0].data if name == "parameter" else both.optimizer.state[both.parameters[0]][name]
            distance = np.abs(actual - bound.exact)
            assert (distance <= bound.error).all(), name
            # The bound says something: a step has some ten operations, on numbers of order one.
            assert (bound.error <= 10 * 2.0**-23 * np.maximum(1, np.abs(bound.exact))).all(), name
        states = {name: np.float64(array) for name, array in both.plains[0].states.items()}  # a step at a time
        gradient = ordinary(size, "float32", 2 + step)


@each_combination()
def test_float32_stays_with_torchs(case, options):
    """torch fuses multiply and add, and its vector square root is off by an ulp now and then, so its bits differ.

    An ulp of a number between 1 and 2 is 1.2e-7. Theirs and ours round the parameter to half of one each, and the move,
    which is far smaller, a little: within two ulps of max(1, |p|) after a step. Roundings add up like a random walk:
    after 50 steps, sqrt(50) = 7 times that would be 17e-7. real_power is off by some ulps, where torch's power is not.
    """
    room = 3 if options.get("lr_power", -0.5) not in (-0.5, 0.0) else 1
    parameter = ordinary(4_000, "float32", 1)
    both = Both(case.optimizer, (options, [parameter]))
    tensor = torch.nn.Parameter(torch.from_numpy(parameter.copy()))
    theirs = case.reference_of(options)([tensor], **options)
    for step in range(1, 51):
        gradient = np.float32(0.1) * ordinary(4_000, "float32", 1 + step)
        both.parameters[0].grad = gradient
        both.optimizer.step()
        tensor.grad = torch.from_numpy(gradient)
        theirs.step()
        if step in (1, 50):
            expected = tensor.detach().numpy()
            distance = np.abs(both.parameters[0].data - expected) / np.maximum(1, np.abs(expected))
            assert distance.max() <= room * (2.5e-7 if step == 1 else 2e-6)


@each_case_with("the first step starts from the parameter")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_computed_in_float32_and_rounded_once(case, dtype):
    """eps = 1e-8 is zero in float16, and the square of a gradient of 1e-4 is: in halves 0 / 0 would follow."""
    alone = {"weight_decay": 0.0, "adapt": False}  # without what the others of a tensor do to an element
    options = {name: value for name, value in alone.items() if name in case.rule.options()}
    both = Both(case.optimizer, (options, [np.ones(4, dtype)]))
    gradient = np.array([1e-4, -1e-4, 0.0, 1.0]).astype(dtype)
    both.step([gradient])
    moved = case.first_move(np.float64(gradient), {"momentum": 0.0, **both.optimizer.defaults})
    expected = (1 + moved).astype(dtype)
    assert_same_bits(both.parameters[0].data, expected)


# --- what is executed


def calls(rule, dtype="float32"):
    """Names of the functions that a step of the rule calls for each block, and how many scratch arrays it needs."""
    traced = trace(rule)
    scalars, _ = scalars_of(rule, 2, rule.scalar_state)
    uniform = {"c.grad_scale": 1.0} | {f"c.{name}": float(value) for name, value in scalars.items()}
    conditions = []
    for number in uniform_conditions(traced.body):  # a comparison with a constant, or a value itself
        statement = traced.body.statements[number]
        operands = [traced.body.statements[operand] for operand in statement.operands] or [statement]
        values = [uniform.get(operand.value, operand.value) for operand in operands]
        conditions.append(bool(statement.operation(*values) if statement.operands else values[0]))
    converted = (dtype in ("float16", "bfloat16"),) * (2 + len(traced.states))
    planned = schedule(traced, tuple(conditions), converted)
    return [instruction.function.__name__.strip("_") for instruction in planned.instructions], len(planned.scratch)


def test_what_does_not_apply_is_not_computed():
    assert calls(rules.SGD()) == (["multiply", "subtract"], 1)
    assert calls(rules.SGD(weight_decay=0.1)) == (["multiply", "add", "multiply", "subtract"], 1)
    adam, scratch = calls(rules.Adam())
    assert sorted(adam) == sorted(["multiply"] * 6 + ["add"] * 3 + ["sqrt", "divide", "subtract"])
    assert scratch == 1  # and the homes of what is made later
    assert calls(rules.AdamW())[1] == 1
    unchanged = optimizer_of([Body((), (NUMBERS.index("p"), NUMBERS.index("left"), NUMBERS.index("right")))])
    assert calls(unchanged.rule()) == (["convert"], 0)  # of the gradient, to "seen"


@each_combination("no result is a copy")
def test_no_result_is_copied_to_its_place(case, options):
    """Each is computed there: a copy would be one more pass."""
    functions, _ = calls(case.rule(**options))
    assert "convert" not in functions


@each_combination("every state is loaded")
def test_halves_are_loaded_and_stored_once_each(case, options):
    rule = case.rule(**options)
    functions, _ = calls(rule, "float16")
    assert functions.count("read") == 2 + len(rule.kept_states)
    assert functions.count("write") == 1 + len(rule.kept_states)


# --- memory


@each_kind
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_makes_no_temporary_of_the_parameters_size(case, dtype):
    size = 8 * 2**20
    parameter = fusedopt.Parameter(np.ones(size, dtype))
    optimizer = case.optimizer([parameter], **case.main)
    parameter.grad = np.ones(size, dtype)
    optimizer.step()  # makes the states
    tracemalloc.start()
    try:
        optimizer.step()
        extra = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Nothing near the 16 or 32 MiB of one array: some blocks of scratch a thread, 128 KiB each, are there already.
    assert extra < 2 * 2**20


# --- random rules


@settings(max_examples=1000, deadline=None)
@given(bodies(), uniform, uniform, scales, st.sampled_from(("float32", *DTYPES)), some_values, st.integers(0, 1000))
def test_random_rules_are_executed_as_the_plain_function(body, one, other, scale, dtype, values, seed):
    both = Both(optimizer_of([body]), ({"one": one, "other": other}, [values(40, dtype, seed)]))
    for step in range(3):
        both.step([values(40, dtype, seed + 1 + step)], scale)
        both.compare()
        both.replace_states(seed + 10 * step, values)


@pytest.mark.parametrize("device", [*DEVICES, NUMBA], indirect=True, scope="module")
@settings(max_examples=3, deadline=None, phases=[Phase.explicit, Phase.generate])  # each compiles: no shrinking
@example(EXCHANGES, 1.0, 1.0, 3.0, ordinary, 0, 1)
@given(
    st.lists(bodies(), min_size=4, max_size=4),
    *(uniform, uniform, scales, some_values, st.integers(0, 1000)),
    st.sampled_from([1, cuda_text.LONG_BRANCH]),
)
def test_random_rules_are_the_same_on_every_device(device, four_bodies, one, other, scale, values, seed, long_branch):
    with mock.patch.object(cuda_text, "LONG_BRANCH", long_branch):
        check_random_rules(device, four_bodies, one, other, scale, values, seed)


def check_random_rules(device, four_bodies, one, other, scale, values, seed):
    flags = [{"odd": odd, "high": high} for odd in (False, True) for high in (False, True)]
    options = [{"one": one, "other": other, **some} for some in flags]
    arrays = [values(40, dtype, seed) for dtype in ("float32", "float64")]
    both = Both(optimizer_of(four_bodies), *((some, arrays) for some in options), array=device.array)
    for step in range(3):
        both.step([values(40, array.dtype.name, seed + 1 + step) for array in 4 * arrays], scale)
        both.compare(device.host)
        both.replace_states(seed + 10 * step, values)
