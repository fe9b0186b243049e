"""Bytes that each storage moves and keeps, as promised, as traced, and as allocated."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import fusedopt
from devices import NUMBA
from fusedopt.rules import SGD, Adam, Lion
from fusedopt.storage import ITEMSIZE, SMALL, memory_of
from fusedopt.storage_choices import CHOICES, LARGE

# A step takes some blocks a thread for itself, however many parameters there are: under 1 % of what is kept from a
# model of this size on, which is GPT-2's smallest.
MODEL = 124_000_000
# By storage: bytes moved a parameter by a step of Adam, and kept beyond parameter and gradient, at most.
PROMISED = {
    "float32": (28, 8),
    "master": (28, 12),
    "split": (26, 10),
    "split+bfloat16": (18, 6),
    "split+int8": (14.2, 4.1),
    "split24+int8": (12.2, 3.1),
}


@pytest.mark.parametrize("name", PROMISED)
def test_adam_moves_and_keeps_no_more_than_is_promised(name):
    moved, kept = PROMISED[name]
    assert CHOICES[name].moved(Adam()) <= moved
    assert CHOICES[name].kept(Adam()) <= kept
    # And not much less: a count that leaves an array out passes the lines above.
    assert CHOICES[name].moved(Adam()) > moved - 0.1
    assert CHOICES[name].kept(Adam()) > kept - 0.1


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("rule", [Adam(), Lion(), SGD(), SGD(momentum=0.9)], ids=str)
def test_bytes_by_kind_are_those_of_the_storage(choice, rule):
    found, size = memory_of(choice.storage(rule), LARGE), LARGE
    assert found["parameters"] == found["gradients"] == size * ITEMSIZE[choice.dtype]
    assert found["masters"] + found["states"] + found["scales"] == size * choice.kept(rule)


@pytest.mark.parametrize(("rule", "moved"), [(SGD(), 10), (SGD(momentum=0.9), 12.0625), (Lion(), 12.0625)], ids=str)
def test_a_rule_moves_what_it_reads_and_writes(rule, moved):
    assert CHOICES["split+int8"].moved(rule) == moved  # the parameter 4 + 4, the gradient 2, a state 2 and its scales


def test_a_master_is_read_in_place_of_its_parameter():
    assert CHOICES["master"].moved(SGD()) == 4 + 2 + 2 + 4  # the master and the gradient read, both parameters written


def test_small_parameters_have_float32_states():
    small = CHOICES["split24+int8"]
    assert small.kept(Adam(), SMALL - 1) == 1 + 8
    assert small.moved(Adam(), SMALL - 1) == 3 + 3 + 2 + 16


# --- memory of a step


def extra_bytes(choice, size):
    """The most that a step has beyond what is kept, scratch included; what compiling takes apart."""
    parameters = [fusedopt.Parameter(np.ones(count, choice.dtype)) for count in (SMALL, size)]
    tiny, optimizer = (fusedopt.Adam([p], **choice.options) for p in parameters)
    for p in parameters:
        p.grad = np.ones(p.size, p.dtype)
    tiny.step()
    made = sum(arena.bytes_of(key) for arena in optimizer.arenas() for key in arena.keys)
    tracemalloc.start()
    try:
        optimizer.step()
        return tracemalloc.get_traced_memory()[1] - made
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("backend", ["numpy", NUMBA])
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_a_step_takes_less_than_a_hundredth_of_what_is_kept(choice, backend, monkeypatch):
    monkeypatch.setenv("FUSEDOPT_BACKEND", backend)
    monkeypatch.setenv("FUSEDOPT_NUM_THREADS", "1")  # several do not always meet in their peaks
    kept = MODEL * choice.in_all(Adam())
    less, more = extra_bytes(choice, 2**19), extra_bytes(choice, 2**22)
    assert 2 * more < 0.01 * kept, "of two threads"
    assert more < less + 2**18, "it grows with the number of parameters"  # of which the least array grew by 3.5 MiB
