"""What NVRTC makes of storages: tiles loaded together, each array at once, nothing in local memory."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from fusedopt.cuda_text import Variant
from fusedopt.rules import SGD, Adam, AdamW, Lion, Rule
from fusedopt.storage import ITEMSIZE, Kept, Storage
from fusedopt.tracing import trace
from machine_code import MachineCode
from storages import Way
from test_machine_code import ARCHITECTURES, assert_lean, compiled_variants

WAYS = {
    "plain": Way("bfloat16", "bfloat16", None, None, False),
    "float32 master": Way("bfloat16", "bfloat16", "float32", "float32", False),
    "split": Way("bfloat16", "bfloat16", "split", "float32", False),
    "split, bf16": Way("bfloat16", "bfloat16", "split", "bfloat16", False),
    "split, int8": Way("bfloat16", "bfloat16", "split", "int8", False),
    "split24, int8": Way("bfloat16", "bfloat16", "split24", "int8", True),
    "stochastic": Way("bfloat16", "bfloat16", None, None, True),
}
FEWER_STATES = {"SGD": (SGD, {}), "SGD with momentum": (SGD, {"momentum": 0.9}), "Lion": (Lion, {})}


def code_of(
    kind: type[Rule], options: Mapping[str, Any], way: Way, architecture: int, change: Sequence[str] = ()
) -> tuple[Storage, MachineCode]:
    rule = kind(**way.options(kind, **options))
    storage = way.storage(rule)
    return storage, compiled_variants([Variant(trace(rule), storage)], rule, architecture, change)


def widths(kept: Kept, reads: bool) -> Iterator[int]:
    """Bits of the accesses that move four elements of a stream: of its array, and of what lies beside."""
    if not (reads and kept.finer == "float32"):
        yield 32 * ITEMSIZE[kept.dtype]
    if kept.beside:
        yield 32 if kept.codes else 32 * ITEMSIZE[kept.beside]


def tiles_of(storage: Storage) -> int:
    """How many tiles a lane loads together: as many as are 64 bytes, two at least, of 40 bytes or less."""
    each = 4 * sum(1 if kept.codes else int(kept.bytes_read) for kept in storage.streams)
    plain = not any(kept.finer or kept.stochastic for kept in storage.streams)
    return 1 if plain or each > 40 else max(2, 64 // each)


def assert_together(storage: Storage, code: MachineCode) -> None:
    loads = Counter(f"LDG.{bits}" for kept in storage.streams for bits in widths(kept, reads=True))
    tiles = tiles_of(storage)
    together = Counter({name: tiles * n for name, n in loads.items()})
    assert together in code.runs, f"no {tiles} tiles at once: {together} in {code.runs}"


def assert_stored_at_once(storage: Storage, code: MachineCode) -> None:
    stores = Counter({"STG.64": 1, "STG.32": 1})  # a counter's value and ticket
    for kept in storage.streams:
        stores.update(f"STG.{bits}" for bits in widths(kept, reads=False))
        stores[f"STG.{8 * ITEMSIZE[kept.dtype]}"] += 4  # one by one
        if kept.beside:
            stores["STG.32" if kept.codes else f"STG.{8 * ITEMSIZE[kept.beside]}"] += 1 if kept.codes else 4
    found = Counter({name: n for name, n in code.memory.items() if name.startswith("STG")})
    assert found == stores, f"stores: {found}, not {stores}"


def check(
    kind: type[Rule], options: Mapping[str, Any], way: Way, architecture: int, change: Sequence[str] = ()
) -> None:
    storage, code = code_of(kind, options, way, architecture, change)
    assert_lean(code)
    assert_together(storage, code)
    assert_stored_at_once(storage, code)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_all_tiles_of_adam_are_loaded_together(way, architecture):
    check(Adam, {}, way, architecture)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("rule", FEWER_STATES)
def test_all_tiles_of_others_are_loaded_together(rule, way):
    if way.states == "int8" and rule == "SGD":
        way = dataclasses.replace(way, states=None)
    check(*FEWER_STATES[rule], way, 90)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("way", ["split, int8", "stochastic"])
def test_a_third_state_fits(way, architecture):
    check(AdamW, {"amsgrad": True, "maximize": True}, WAYS[way], architecture)


@pytest.mark.parametrize(
    ("file", "old", "new", "seen"),
    [
        ("fused_step.cu", "tile < TILES; tile++)\n        tiles", "tile < 1; tile++)\n        tiles", "tiles at once"),
        ("fused_step.cu", "const bool wide = aligned && lanes == WIDTH;", "const bool wide = false;", "stores"),
        ("fused_step.cu", "in_64 > 2 ? in_64 : 2;", "6;", "local accesses|registers|stack"),
    ],
    ids=["one by one", "narrow", "too many"],
)
def test_worse_code_is_seen(file, old, new, seen):
    with pytest.raises(AssertionError, match=seen):
        check(Adam, {}, WAYS["split, int8"], 90, (file, old, new))
