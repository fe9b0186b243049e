"""What NVRTC makes of the kernel: wide accesses, no generic or local ones, and few enough registers for four blocks.

NVRTC takes the kernel for several architectures on any machine; no GPU is needed to read the result.
"""

import itertools
from collections import Counter
from collections.abc import Sequence

import pytest

from cases import CASES
from fusedopt import compiler
from fusedopt.backends.device import BLOCKS, THREADS, kernel_texts
from fusedopt.cuda_text import Variant, pointers_of, rule_text
from fusedopt.rules import LAMB, LARS, SGD, Adam, AdamW, Rule
from fusedopt.storage import storage_of
from fusedopt.tracing import trace
from machine_code import MachineCode, missing, read
from mutation import edit

ARCHITECTURES = (75, 80, 90, 100, 120)
DTYPES = ("float32", "float64", "float16", "bfloat16")
REGISTERS = 65536 // (BLOCKS * THREADS)  # of a multiprocessor, over the threads that are to be on it
RULES = {
    "SGD": SGD(),
    "SGD with momentum": SGD(momentum=0.9, nesterov=True),
    "Adam": Adam(),
    "AdamW with amsgrad": AdamW(amsgrad=True, maximize=True),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def compiled(
    rules: Sequence[Rule],
    dtypes: Sequence[str],
    architecture: int,
    change: Sequence[str] = (),
    kernel: str = "fused_step",
) -> MachineCode:
    """A kernel with a variant for each rule and dtype; `change` is what `mutation.edit` takes."""
    variants = [
        Variant(trace(rule), storage_of(rule, dtype, dtype, 1)) for rule, dtype in itertools.product(rules, dtypes)
    ]
    return compiled_variants(variants, rules[0], architecture, change, kernel)


def compiled_variants(
    variants: Sequence[Variant], rule: Rule, architecture: int, change: Sequence[str] = (), kernel: str = "fused_step"
) -> MachineCode:
    """A kernel of these, which have the options of one rule."""
    try:
        compiler.nvrtc_version()
    except compiler.CompilerMissingError:
        missing("CuPy and NVRTC", "cupy-cuda13x nvidia-cuda-nvrtc")
    text = rule_text(variants, rule.number_names(), len(rule.scalar_state), pointers_of(variants))
    source, headers = kernel_texts()
    texts = {"fused_step.cu": source, **headers, "rule.cuh": text}
    if change:
        texts = edit(*change)(texts)
    return read(compiler.compiled(texts.pop("fused_step.cu"), texts, f"sm_{architecture}"))[kernel]


def assert_lean(code: MachineCode) -> None:
    assert code.count("LD", "ST", "ATOM", "RED") == 0, f"generic accesses: {code.memory}"
    assert code.count("LDL", "STL") == 0, f"local accesses: {code.memory}"
    assert (code.stack, code.local) == (0, 0)
    assert code.registers <= REGISTERS


def assert_good(code: MachineCode, rule: Rule, dtype: str, table_reads: int) -> None:
    assert_lean(code)
    assert_wide(code, rule, dtype, table_reads)


def assert_wide(code: MachineCode, rule: Rule, dtype: str, table_reads: int) -> None:
    """One access a stream where all is aligned, and beside it those of single elements and of the tables, no more."""
    loads, stores = 2 + len(rule.kept_states), 2 + len(rule.kept_states)  # a gradient too is stored, where asked for
    wide, single, lanes = {"float32": ("128", "32", 4), "float64": ("128", "64", 2)}.get(dtype, ("64", "16", 4))
    expected = Counter({"LDG.64": table_reads, "LDG.32": 3, "STG.64": 1, "STG.32": 1})  # a counter's value and ticket
    expected += Counter({f"LDG.{wide}": loads, f"STG.{wide}": stores})
    expected += Counter({f"LDG.{single}": loads * lanes, f"STG.{single}": stores * lanes})
    found = Counter({name: n for name, n in code.memory.items() if name.startswith(("LDG", "STG"))})
    assert found == expected, f"accesses to global memory: {found}, not {expected}"


@each_architecture
@each_rule
def test_one_wide_access_a_stream_and_nothing_in_local_memory(rule, architecture):
    floats = compiled([rule], ["float32"], architecture)
    table_reads = floats.memory["LDG.64"]  # pointers, hyperparameters, counters: the same for every dtype
    assert 10 <= table_reads <= 20
    for dtype in DTYPES:
        code = compiled([rule], [dtype], architecture)
        assert_good(code, rule, dtype, table_reads)


@pytest.mark.parametrize("architecture", [75, 90])
@pytest.mark.parametrize(
    ("rule", "streams"),
    [
        (LAMB(), 4),
        (LARS(momentum=0.9), 2),
        (Adam(clip_norm=1.0), 1),
        (SGD(grad_centralization=True, weight_decay=0.1), 2),
    ],
    ids=["LAMB", "LARS", "clip_norm", "grad_centralization"],
)
def test_stages_read_what_they_sum_at_once_and_store_sums_alone(rule, streams, architecture):
    code = compiled([rule], ["float32"], architecture, kernel="fused_sums")
    assert_lean(code)
    together = {1: 4, 2: 2, 4: 1}[streams]  # tiles; and one more alone, where these are too many
    assert code.memory["LDG.128"] == streams * (together + (together > 1)), code.memory
    assert code.count("STG") == len(rule.stages[0].names), code.memory
    assert_lean(compiled([rule], ["float32", "bfloat16"], architecture))


@pytest.mark.parametrize("case", [case for case in CASES if case.bytes_moved], ids=lambda case: case.name)
def test_each_rule_moves_the_bytes_that_its_equations_need(case):
    """In the vector path, four elements of a stream an access; the gradient's store is for where it is asked for."""
    code = compiled([case.rule(**case.main)], ["float32"], 90)
    assert_lean(code)
    assert 4 * (code.memory["LDG.128"] + code.memory["STG.128"] - 1) == case.bytes_moved


@pytest.mark.slow
@each_architecture
def test_a_kernel_of_many_variants_is_as_lean(architecture):
    rules = [Adam(), Adam(amsgrad=True, decoupled_weight_decay=True)]
    code = compiled(rules, DTYPES, architecture)
    assert_lean(code)
    streams = sum(2 + len(rule.kept_states) for rule in rules)
    assert code.memory["LDG.128"] == 2 * streams  # of floats and of doubles


@pytest.mark.parametrize(
    ("file", "old", "new", "seen"),
    [
        ("storage.cuh", "__builtin_assume(__isGlobal(pointer));", "", "generic accesses"),
        ("fused_step.cu", "__launch_bounds__(256, 4)", "__launch_bounds__(256, 8)", "local accesses"),
        ("fused_step.cu", "aligned && lanes == WIDTH", "false", "accesses to global memory"),
        (
            "fused_step.cu",
            "#pragma unroll 1\n  for (; (i",
            "#pragma unroll 2\n  for (; (i",
            "accesses to global memory",
        ),
    ],
    ids=["generic", "spilled", "narrow", "unrolled"],
)
def test_worse_code_is_seen(file, old, new, seen):
    rule = Adam()
    table_reads = compiled([rule], ["float32"], 90).memory["LDG.64"]
    code = compiled([rule], ["float32"], 90, (file, old, new))
    with pytest.raises(AssertionError, match=seen):
        assert_good(code, rule, "float32", table_reads)
