"""The kernel's text on the host, through the whole stack, against NumPy: the same bits, whatever runs them and how."""

import contextlib
import ctypes
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import fusedopt
from cases import DTYPES, SIZES, each_case
from emulated import EmulatedArray, new_device
from emulator.build import Unavailable, build, compiler, run_sanitized, skip_or_fail
from fusedopt.backends import device
from fusedopt.backends.device import LAUNCH, Uploads, kernel_texts, span_dtype
from fusedopt.backends.stages import reduced_dtype
from fusedopt.cuda_text import Variant, rule_text
from fusedopt.layout import CHUNK_RECORD
from fusedopt.storage import storage_of
from fusedopt.tracing import trace
from step_checks import (
    ADAM,
    COUNTING,
    GEOMETRIES,
    ONE,
    Session,
    check_conversions,
    check_large_offsets,
    check_misaligned,
    check_mixed,
    check_one,
    check_stages,
    check_uploads,
    same_results,
)

SCRIPT = Path(__file__).with_name("sanitized_steps.py")


@pytest.fixture(autouse=True)
def _needs_a_compiler():
    if compiler() is None:
        skip_or_fail("no C++ compiler: set CXX, or install g++.")


@pytest.fixture
def array() -> type[EmulatedArray]:
    """Arrays of a device of the test's own."""
    return new_device()


# --- bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@each_case
def test_all_flags_and_dtypes_in_one_launch_have_numpy_s_bits(array, case):
    groups = tuple((options, dtype) for options in case.variants() for dtype in DTYPES)
    Session(case.optimizer, groups, SIZES).check(array)
    stages = max(len(case.rule(**options).stages) for options in case.valid())
    assert len(array.__fusedopt_backend__.surface.launches) == 3 * (1 + stages)


@pytest.mark.parametrize("dtype", DTYPES)
def test_eps_of_zero_and_extremes_have_numpy_s_bits(array, dtype):
    options = {**ADAM, "eps": 0.0, "amsgrad": True}  # 0 / 0 where the gradient is 0
    Session(fusedopt.Adam, ((options, dtype),), sizes=(1000,)).check(array)


@pytest.mark.parametrize(("grid", "threads", "order"), GEOMETRIES)
def test_grid_block_size_and_order_do_not_change_a_bit(array, grid, threads, order):
    check_mixed(array, (grid, threads, order))


@pytest.mark.parametrize("chunk", [4, 100, 128, 1000, 16384])
def test_the_length_of_chunks_does_not_change_a_bit(array, chunk):
    with mock.patch.object(device, "CHUNK", chunk):
        check_one(array)


@pytest.mark.parametrize("stream", range(5), ids=["parameter", "gradient", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_misaligned_buffer_does_not_change_a_bit(array, dtype, stream):
    for elements in (1, 2, 3):  # 4, 8, 12 bytes of float32; 2, 4, 6 of a half; of doubles 2 are aligned
        check_misaligned(array, dtype, stream, elements)


def test_a_misaligned_buffer_is_one(array):
    surface, tables = array.__fusedopt_backend__.surface, []
    copy = surface.copy
    surface.copy = lambda to, source: tables.append(source.copy()) or copy(to, source)
    check_misaligned(array, "float32", stream=3, elements=1)
    span = tables[0].view(span_dtype(3))[0]
    assert [span["parameter"] % 16, span["gradient"] % 16, *span["state"] % 16] == [0, 0, 0, 4, 0]


def test_halves_convert_as_numpy_s(array):
    check_conversions(array)


@pytest.mark.parametrize(("grid", "threads", "order"), GEOMETRIES)
def test_sums_have_numpy_s_bits_whatever_the_geometry(array, grid, threads, order):
    surface = array.__fusedopt_backend__.surface
    surface.grid, surface.threads, surface.order = grid, threads, order
    check_stages(array)


# --- grad_scale and found_inf ----------------------------------------------------------------------------------------


def on_device(array, value):
    return np.array([value], np.float32).view(array)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [65536.0, 3.0, 1.0, 0.0, np.inf, np.nan])
def test_grad_scale_is_the_same_as_a_number_and_on_the_device(array, dtype, scale):
    session = Session(fusedopt.SGD, (({"lr": 0.1, "momentum": 0.9}, dtype),), scalars=({}, {"grad_scale": scale}, {}))
    session.check(array)
    device_scale = {"grad_scale": on_device(array, scale)}
    found = Session(session.optimizer, session.groups, scalars=({}, device_scale, {})).after(array)
    same_results(found, session.after(np.ndarray))


@pytest.mark.parametrize("number", [1.0, 2.0, -1.0, 1e-45, np.inf, np.nan])
@pytest.mark.parametrize("where", ["number", "device"])
def test_a_found_infinity_changes_and_counts_nothing(array, where, number):
    found_inf = number if where == "number" else on_device(array, number)
    groups = (({}, "float32"), ({}, "float64"))
    skipped = Session(COUNTING.optimizer, groups, (0, 300), scalars=({}, {"found_inf": found_inf})).after(array)
    once = Session(COUNTING.optimizer, groups, (0, 300), scalars=({},)).after(array)
    same_results(skipped, once)


@pytest.mark.parametrize("where", ["number", "device"])
def test_found_inf_of_zero_is_a_step(array, where):
    for number in (0.0, -0.0):
        found_inf = number if where == "number" else on_device(array, number)
        found = Session(ONE.optimizer, ONE.groups, scalars=({"found_inf": found_inf},)).after(array)
        assert found["step of 0"] == 1


# --- counters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1, 7])
@pytest.mark.parametrize("grid", [1, 2, 50])
def test_scalar_state_follows_the_rule_over_many_steps(array, grid, order):
    surface = array.__fusedopt_backend__.surface
    surface.grid, surface.order = grid, order
    with mock.patch.object(device, "CHUNK", 128):
        COUNTING.check(array)


def test_every_parameter_of_a_span_counts_its_steps_the_empty_ones_too(array):
    sizes = (0, 5, 0, 700, 0)
    with mock.patch.object(device, "CHUNK", 128):
        found = Session(fusedopt.Adam, (({}, "float32"),), sizes, scalars=[{}] * 4).after(array)
    assert len(array.__fusedopt_backend__.surface.launches) == 4
    counters = found["counters of arena 0"]
    np.testing.assert_array_equal(counters[:, 0], [4] * len(sizes))
    np.testing.assert_array_equal(counters[:, 1], 0)  # the ticket is ready for the next launch


def test_a_variant_that_does_not_count_leaves_its_counters_alone(array):
    found = Session(fusedopt.SGD, (({}, "float32"), ({"momentum": 0.5}, "float32")), (7,)).after(array)
    assert found["counters of arena 0"][0, 0] == 0
    assert found["counters of arena 1"][0, 0] == 3


# --- tables ----------------------------------------------------------------------------------------------------------


def cxx_layout(states: int, scalars: int) -> dict[str, list[int]]:
    """Of each struct of the kernel the size, then the offset of each member that Python writes."""
    members = {
        "Launch": LAUNCH.names,
        "Span": span_dtype(states).names,
        "Chunk": CHUNK_RECORD.names,
        "Reduced": reduced_dtype(1).names,
        "Counter": ("values", "ticket"),
    }
    expressions = [f"offsetof({struct}, {name})" for struct, names in members.items() for name in names]
    sizes = [f"sizeof({struct})" for struct in members]
    source, headers = kernel_texts()
    numbers = f"extern const unsigned numbers[];\nconst unsigned numbers[] = {{{', '.join(sizes + expressions)}}};"
    rule = fusedopt.SGD.rule(momentum=0.5)
    variant = Variant(trace(rule), storage_of(rule, "float32", "float32", 1))
    text = rule_text([variant], rule.number_names(), scalars, states)
    library = build(f'{source}\n#include <cstddef>\nextern "C" {{ {numbers} }}\n', {**headers, "rule.cuh": text})
    found = list((ctypes.c_uint * (len(sizes) + len(expressions))).in_dll(library, "numbers"))
    rest = iter(found[len(sizes) :])
    return {s: [size, *(next(rest) for _ in names)] for size, (s, names) in zip(found, members.items(), strict=False)}


@pytest.mark.parametrize(("states", "scalars"), [(1, 0), (2, 1), (3, 0), (4, 2), (5, 3)])
def test_records_lie_in_memory_as_the_kernel_s_structs(states, scalars):
    found = cxx_layout(states, scalars)
    records = {"Launch": LAUNCH, "Span": span_dtype(states), "Chunk": CHUNK_RECORD, "Reduced": reduced_dtype(1)}
    for struct, dtype in records.items():
        assert found[struct] == [dtype.itemsize, *(dtype.fields[name][1] for name in dtype.names)], struct
    assert found["Counter"] == [8 * (2 + scalars), 0, 8 * (1 + scalars)]  # a row of Arena.counters


def test_a_pinned_buffer_is_not_written_before_its_copy_is_done(array):
    check_uploads(array)


def test_uploads_of_several_threads_carry_their_own_bytes(array):
    surface = array.__fusedopt_backend__.surface
    uploads, copy = Uploads(surface), surface.copy

    def slow_copy(to, source):
        time.sleep(0.001)  # another thread's turn, between what it writes and its copy
        return copy(to, source)

    def send(number):
        to = surface.zeros(100, np.dtype(np.uint8))
        uploads.upload(to, np.full(100, number, np.uint8))
        return to

    surface.copy = slow_copy
    with ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(send, range(100)))
    for number, to in enumerate(sent):
        np.testing.assert_array_equal(surface.host(to), np.full(100, number))


def test_buffers_are_written_where_their_device_is_current():
    """Beside launches: as an optimizer takes parameters, zeroes gradients, makes state and loads it."""
    entered, written = [], []

    class Written(EmulatedArray):
        def __setitem__(self, key, value):
            written.append(bool(entered))
            super().__setitem__(key, value)

        def fill(self, value):
            written.append(bool(entered))
            super().fill(value)

    @contextlib.contextmanager
    def here():
        entered.append(True)
        yield
        entered.pop()

    backend = new_device(here=here).__fusedopt_backend__
    backend.surface.array_type = Written
    Written.__fusedopt_backend__ = backend
    parameter = fusedopt.Parameter(np.ones(3, np.float32).view(Written))
    optimizer = fusedopt.SGD([parameter], momentum=0.5)
    for change in (optimizer.init_state, lambda: optimizer.load_state_dict(optimizer.state_dict())):
        change()
    optimizer.zero_grad(set_to_none=False)
    assert written == [True] * 6  # data; the age, of buffer and state; momentum and age; the gradients


def test_many_changes_of_tables_and_numbers_reach_the_kernel(array):
    with mock.patch.object(device, "CHUNK", 4):  # tables of some 100 KiB: larger than the ring's first buffers
        Session(fusedopt.Adam, ((ADAM, "float32"),) * 3, (5000, 1, 2000), scalars=[{}] * 8, without=2).check(array)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_chunks_beyond_2_to_the_32_change_their_own_elements(array, dtype):
    try:
        check_large_offsets(array, dtype)
    except OSError as reason:
        skip_or_fail(f"the system does not reserve address space for 2**32 elements: {reason}")


# --- sanitizers ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sanitize", ["address", "thread"])
def test_a_sanitizer_finds_nothing(sanitize):
    try:
        process = run_sanitized(sanitize, [str(SCRIPT), sanitize], timeout=300)
    except Unavailable as reason:
        skip_or_fail(reason)
    assert (process.returncode, process.stderr) == (0, "")


def test_tables_go_from_plan_to_plan(array, monkeypatch):
    """A replaced table is not given back to the device, where another stream could take it from under a launch."""
    surface, made = array.__fusedopt_backend__.surface, []
    zeros = surface.zeros
    parameters = [fusedopt.Parameter(np.ones(5, np.float32).view(array)) for _ in range(40)]
    optimizer = fusedopt.Adam(parameters)
    backend = array.__fusedopt_backend__
    monkeypatch.setattr(surface, "zeros", lambda count, dtype: made.append(count) or zeros(count, dtype))
    monkeypatch.setattr(backend, "zeros", zeros)  # of states, which are made once
    counts = []
    for step in range(12):
        for index, parameter in enumerate(parameters):
            parameter.grad = None if step % 3 and index % (step % 3 + 1) else np.ones(5, np.float32).view(array)
        optimizer.step()
        counts.append(len(made))
    assert counts[0] == 3  # spans, chunks, numbers
    assert counts[-1] == counts[5], "after two rounds there is memory of every size"
