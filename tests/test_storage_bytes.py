"""Bytes that each storage moves and keeps, as promised, as traced, and as allocated."""

from __future__ import annotations

import pytest

from fusedopt.rules import SGD, Adam, Lion
from fusedopt.storage import ITEMSIZE, SMALL, memory_of
from fusedopt.storage_choices import CHOICES, LARGE

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
