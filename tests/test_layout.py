"""Where things lie: alignment, spans over neighbours with one history, chunks; against what one would write naively."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import DTYPES
from fusedopt import Parameter, rules
from fusedopt.arena import NO_HISTORY, Arena, spans_of
from fusedopt.backends import cpu_backend
from fusedopt.layout import ALIGNMENT, Changes, chunks_of, offsets_of

sizes = st.lists(st.integers(0, 300), min_size=1, max_size=12)


def arena_of(sizes: list[int], dtype: str = "float32") -> Arena:
    parameters = [Parameter(np.full(size, number, dtype)) for number, size in enumerate(sizes)]
    arena = Arena(cpu_backend(), SimpleNamespace(rule=rules.Adam()), parameters, Changes(), range(len(parameters)))
    arena.take_parameters()
    return arena


# --- offsets


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.sampled_from([2, 4, 8]))
def test_tensors_start_aligned_and_do_not_overlap(sizes, itemsize):
    offsets, length = offsets_of(sizes, itemsize)
    assert len(offsets) == len(sizes)
    assert all(offset * itemsize % ALIGNMENT == 0 for offset in offsets)
    for size, offset, following in zip(sizes, offsets, [*offsets[1:], length], strict=True):
        assert 0 <= following - offset - size < ALIGNMENT // itemsize  # room enough, and no more than alignment needs


@given(sizes, st.sampled_from(DTYPES))
def test_data_gradients_and_states_are_aligned_views_of_one_buffer_each(sizes, dtype):
    arena = arena_of(sizes, dtype)
    for buffer in (arena.data, arena.gradients, arena.state("exp_avg")):
        for index in range(len(sizes)):
            view = arena.view(buffer, index)
            assert view.shape == (sizes[index],)
            assert view.ctypes.data % ALIGNMENT == 0 or view.size == 0
            assert np.shares_memory(view, buffer) or view.size == 0
            view[...] = index + 1
        assert [int((buffer == index + 1).sum()) for index in range(len(sizes))] == sizes  # nobody wrote over another
    assert all((p.data == index + 1).all() for index, p in enumerate(arena.parameters))


def test_the_views_of_a_device_are_aligned(device):
    parameters = [Parameter(device.array(np.zeros(size, np.float32))) for size in (3, 0, 64, 65)]
    arena = Arena(device.backend, SimpleNamespace(rule=rules.Adam()), parameters, Changes(), range(len(parameters)))
    arena.take_parameters()
    if device.name == "cuda":
        pointers = [parameter.data.data.ptr for parameter in parameters]
    else:
        pointers = [parameter.data.ctypes.data for parameter in parameters]
    assert all(pointer % ALIGNMENT == 0 for pointer in pointers)
    assert len(arena.data) == 4 * 64


# --- cohorts and spans


@st.composite
def sessions(draw: st.DrawFn) -> tuple[list[int], list[list[bool]]]:
    """Sizes of some parameters, and which of them step at each of some steps."""
    some = draw(sizes)
    row = st.lists(st.booleans(), min_size=len(some), max_size=len(some))
    return some, draw(st.lists(row | st.just([True] * len(some)), max_size=10))


@given(sessions())
def test_a_cohort_is_those_with_the_same_steps_behind_them(session):
    sizes, steps = session
    arena = arena_of(sizes)
    histories: list[tuple[int, ...]] = [() for _ in sizes]
    for number, row in enumerate(steps):
        arena.part_cohorts(np.array(row))
        histories = [(*history, number) if steps_now else history for history, steps_now in zip(histories, row)]
        assert_cohorts_are(arena, histories, nothing=())


@given(sessions(), st.data())
def test_cohorts_join_where_a_loaded_state_makes_them_equal(session, data):
    sizes, steps = session
    arena = arena_of(sizes)
    for row in steps[: len(steps) // 2]:
        arena.part_cohorts(np.array(row))
    loaded = data.draw(st.lists(st.sampled_from([None, b"1", b"2"]), min_size=len(sizes), max_size=len(sizes)))
    arena.join_cohorts(loaded)
    histories: list[Any] = list(loaded)
    assert_cohorts_are(arena, histories, nothing=None)
    for number, row in enumerate(steps[len(steps) // 2 :]):
        arena.part_cohorts(np.array(row))
        histories = [(history, number) if steps_now else history for history, steps_now in zip(histories, row)]
        assert_cohorts_are(arena, histories, nothing=None)


def assert_cohorts_are(arena: Arena, histories: list[Any], nothing: Any) -> None:
    """Equal numbers where histories are equal, and only there; `NO_HISTORY` for those with nothing behind them."""
    cohorts = arena.cohorts.tolist()
    assert len(set(zip(cohorts, histories))) == len(set(cohorts)) == len(set(histories))
    assert all((cohort == NO_HISTORY) == (history == nothing) for cohort, history in zip(cohorts, histories))


@given(sessions())
def test_spans_cover_the_stepping_parameters_alone_and_are_the_fewest(session):
    sizes, steps = session
    arena = arena_of(sizes)
    for row in steps:
        stepping = np.array(row)
        arena.part_cohorts(stepping)
        spans = spans_of(arena, stepping)
        assert [index for s in spans for index in range(s.first, s.last + 1)] == np.flatnonzero(stepping).tolist()
        for span in spans:
            assert len(set(arena.cohorts[span.first : span.last + 1].tolist())) == 1
            assert span.start == arena.offsets[span.first]
            assert span.stop == arena.offsets[span.last] + sizes[span.last]
        for span, following in itertools.pairwise(spans):
            joined = span.last + 1 == following.first and arena.cohorts[span.last] == arena.cohorts[following.first]
            assert not joined


@given(sessions())
def test_stepping_is_having_a_gradient_and_requiring_one(session):
    sizes, steps = session
    arena = arena_of(sizes)
    for number, row in enumerate(steps):
        for parameter, wanted in zip(arena.parameters, row):
            parameter.requires_grad = wanted or number % 2 == 0
            parameter.grad = np.zeros(parameter.shape, np.float32) if wanted or number % 2 == 1 else None
        assert list(arena.presence.stepping) == row


def test_a_thousand_tensors_are_one_span():
    arena = arena_of([5] * 1000)
    everyone = np.ones(1000, bool)
    arena.part_cohorts(everyone)
    assert len(spans_of(arena, everyone)) == 1


# --- chunks


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=10), st.integers(1, 700))
def test_chunks_cover_each_span_once(counts, chunk):
    table = chunks_of(counts, chunk)
    covered = [np.zeros(count, int) for count in counts]
    for piece in table:
        covered[piece["span"]][piece["first"] : piece["first"] + piece["count"]] += 1
        assert piece["first"] + piece["count"] <= counts[piece["span"]]
    assert all((times == 1).all() for times in covered)
    assert table["count"].max() <= chunk
    assert sorted(table["span"].tolist()) == table["span"].tolist()  # a block that goes on stays in its span


@given(st.lists(st.just(0) | st.integers(1, 100), min_size=1, max_size=10))
def test_an_empty_span_has_one_empty_chunk(counts):
    table = chunks_of(counts, 32)
    for number, count in enumerate(counts):
        pieces = table["count"][table["span"] == number].tolist()
        assert pieces == [0] if count == 0 else all(pieces)


@pytest.mark.parametrize("count", [2**31 - 1, 2**31, 2**32, 2**32 + 5])
def test_chunks_reach_beyond_32_bits(count):
    table = chunks_of([3, count], 2**24)
    last = table[-1]
    assert int(last["first"]) + int(last["count"]) == count
    assert int(table["count"][1:].sum(dtype=np.uint64)) == count
