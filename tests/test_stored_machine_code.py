"""What NVRTC makes of every rule in every storage: nothing generic, nothing in local memory, not too many registers."""

from __future__ import annotations

from typing import Any

import pytest

from cases import CASES, Case
from fusedopt import compiler
from fusedopt.backends.device import kernel_texts
from fusedopt.cuda_text import Variant, pointers_of, rule_text
from fusedopt.storage import SMALL
from fusedopt.tracing import trace
from machine_code import MachineCode, missing, read
from storages import each_value, every_way, uncentered
from test_machine_code import ARCHITECTURES, assert_lean

LAUNCHED = [case for case in CASES if not case.rule.procedure]
EVERYWHERE = ("Adam", "SGD", "Lion")
PAIRS = [
    pytest.param(case, architecture, id=f"{case.name}-{architecture}")
    for number, case in enumerate(LAUNCHED)
    for architecture in (ARCHITECTURES if case.name in EVERYWHERE else ARCHITECTURES[number % 5 :][:1])
]


def variants_of(case: Case) -> list[Variant]:
    """One launch of parameters in a few ways, in which each dtype and each option is, large ones and small ones."""
    options = uncentered(case.main)
    found: dict[Any, Variant] = {}
    for way in each_value(every_way(case.rule, **options)):
        rule = case.rule(**way.options(case.rule, **options))
        for size in (SMALL, SMALL - 1):
            storage = way.storage(rule, size)
            found[storage] = Variant(trace(rule), storage)
    return list(found.values())


def compiled(case: Case, architecture: int) -> MachineCode:
    try:
        compiler.nvrtc_version()
    except compiler.CompilerMissingError:
        missing("CuPy and NVRTC", "cupy-cuda13x nvidia-cuda-nvrtc")
    rule, variants = case.rule(**case.main), variants_of(case)
    text = rule_text(variants, rule.number_names(), len(rule.scalar_state), pointers_of(variants))
    source, headers = kernel_texts()
    return read(compiler.compiled(source, {**headers, "rule.cuh": text}, f"sm_{architecture}"))["fused_step"]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "architecture"), PAIRS)
def test_a_kernel_of_all_storages_is_lean(case, architecture):
    assert_lean(compiled(case, architecture))
