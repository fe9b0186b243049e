"""What a step moves where arrays are kept narrowly: by the rule's equations, and by the machine code of its kernel."""

from collections import Counter

import numpy as np
import pytest

from fusedopt import compiler
from fusedopt.backends.device import kernel_texts
from fusedopt.cuda_text import Variant, rule_text
from fusedopt.rules import Adam
from fusedopt.storage import BLOCK, SMALL, array_dtypes, storage_of
from fusedopt.tracing import trace
from fusedopt.traffic import traffic
from machine_code import MachineCode, missing, read
from test_machine_code import assert_lean

# Options of Adam, dtype, bytes moved a parameter at most, and tiles whose loads are under way together.
ROWS = {
    "float32": ({}, "float32", 28, 1),
    "float32 master": ({"master_weights": "float32", "state_dtype": "float32"}, "bfloat16", 28, 1),
    "split": ({"master_weights": "split", "state_dtype": "float32"}, "bfloat16", 26, 1),
    "split, bfloat16 states": ({"master_weights": "split", "state_dtype": "bfloat16"}, "bfloat16", 18, 2),
    "split, int8 states": ({"master_weights": "split", "state_dtype": "int8"}, "bfloat16", 14.2, 2),
    "split24, int8 states": ({"master_weights": "split24", "state_dtype": "int8"}, "bfloat16", 12.2, 2),
}
each_row = pytest.mark.parametrize(("options", "dtype", "most", "tiles"), ROWS.values(), ids=ROWS)


def variant_of(options: dict, dtype: str) -> Variant:
    rule = Adam(**options)
    return Variant(trace(rule), storage_of(rule, dtype, dtype, SMALL))


def compiled(variant: Variant) -> MachineCode:
    try:
        compiler.nvrtc_version()
    except compiler.CompilerMissingError:
        missing("CuPy and NVRTC", "cupy-cuda13x nvidia-cuda-nvrtc")
    source, headers = kernel_texts()
    text = rule_text([variant], Adam().number_names(), 0, variant.pointers)
    return read(compiler.compiled(source, {**headers, "rule.cuh": text}, "sm_90"))["fused_step"]


@each_row
def test_the_equations_need_no_more_bytes_than_the_table_says(options, dtype, most, tiles):
    variant = variant_of(options, dtype)
    assert most - 0.1 < traffic(variant.traced).bytes(variant.storage) <= most


@each_row
def test_the_kernel_moves_what_the_equations_need_by_one_access_an_array(options, dtype, most, tiles):
    """Exactly the accesses of so many tiles, of one tile, and of single elements, beside those of tables."""
    variant = variant_of(options, dtype)
    code, storage = compiled(variant), variant.storage
    assert_lean(code)
    sizes = [np.dtype(name).itemsize for name in array_dtypes(storage)]
    scales = sum(bool(kept.codes) for kept in storage.states)
    elementwise = sizes[: len(sizes) - scales]
    loaded = elementwise[1:] if storage.parameter.finer == "float32" else elementwise
    wide = 1 if tiles == 1 else tiles + 1
    expected = Counter({"LDG.64": 12 + variant.pointers, "LDG.32": 3, "STG.64": 1, "STG.32": 1})
    for size in loaded:
        expected += Counter({f"LDG.{32 * size}": wide, f"LDG.{8 * size}": 4})
    for size in elementwise:
        expected += Counter({f"STG.{32 * size}": 1, f"STG.{8 * size}": 4})
    found = Counter({name: n for name, n in code.memory.items() if name.startswith(("LDG", "STG"))})
    loads_of_scales = (
        found["LDG.32"] - expected["LDG.32"]
    )  # in each tile, and beside single elements: maybe one for both
    assert scales * wide <= loads_of_scales <= scales * (wide + 1)
    expected += Counter({"LDG.32": loads_of_scales, "STG.32": 2 * scales})
    assert found == expected
    moved = sum(loaded) + sum(elementwise) - sizes[1] + 2 * 4 * scales / BLOCK  # the gradient's store: where asked for
    assert moved == traffic(variant.traced).bytes(storage)
