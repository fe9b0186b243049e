"""The guards of the emulated device, seen red: each mutant of the kernel or of what feeds it is killed by its check."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import step_checks
from emulated import EmulatedArray, new_device
from emulator import build
from emulator.build import Unavailable, compiler, run_sanitized, skip_or_fail
from mutation import edit

from fusedopt.backends import device
from fusedopt.backends.device import kernel_texts
from fusedopt.layout import chunks_of

SCRIPT = Path(__file__).with_name("sanitized_steps.py")
KERNEL, STORAGE, RULE = "fused_step.cu", "storage.cuh", "rule.cuh"
LANES = "lanes = chunk.count - i < WIDTH ? chunk.count - i : WIDTH;"
PREPARE = "if (threadIdx.x == 0) prepare<Variant>(launch, shared);\n"


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A wrong text, and the check that sees it.

    Attributes:
        check: Fails, or the emulator stops it; the name of a sanitizer where it takes one to see it.
    """

    name: str
    file: str
    old: str
    new: str
    check: Callable[[type[EmulatedArray]], None] | str


MUTANTS = [
    Mutant("a wrong constant", RULE, "real(new_beta2);", "real(new_beta2 + 1e-7);", step_checks.check_one),
    Mutant("a wrong step", KERNEL, "before[0] + 1;", "before[0] + 2;", step_checks.check_one),
    Mutant(
        "states swapped by the rule",
        RULE,
        "s[0] = new_exp_avg;\n    s[1] = new_exp_avg_sq;",
        "s[1] = new_exp_avg;\n    s[0] = new_exp_avg_sq;",
        step_checks.check_one,
    ),
    Mutant(
        "states swapped in memory",
        KERNEL,
        "span.state[k]))",
        "span.state[Variant::states - 1 - k]))",
        step_checks.check_one,
    ),
    Mutant("a dropped tail", KERNEL, ": to.store(elements, lanes);", ": void();", step_checks.check_one),
    Mutant(
        "one lane too few",
        KERNEL,
        LANES,
        LANES.replace("? chunk.count - i", "? chunk.count - i - 1"),
        step_checks.check_one,
    ),
    Mutant(
        "one lane too many",
        KERNEL,
        LANES,
        LANES.replace("? chunk.count - i", "? chunk.count - i + 1"),
        step_checks.check_large_offsets,
    ),
    Mutant(
        "an unmasked store",
        KERNEL,
        "to.store(elements, lanes);",
        "to.store(elements, WIDTH);",
        step_checks.check_large_offsets,
    ),
    Mutant(
        "a 32-bit index",
        KERNEL,
        "Streams(const Span& span, unsigned long long first)",
        "Streams(const Span& span, unsigned first)",
        step_checks.check_large_offsets,
    ),
    Mutant(
        "a 32-bit offset in bytes",
        KERNEL,
        "parameter(global(static_cast<typename Variant::Parameter*>(span.parameter)) + first)",
        "parameter(reinterpret_cast<typename Variant::Parameter*>(static_cast<char*>(span.parameter) + "
        "unsigned(first * sizeof(typename Variant::Parameter))))",
        step_checks.check_large_offsets,
    ),
    Mutant(
        "a 32-bit place of a chunk",
        KERNEL,
        "unsigned long long first;  //",
        "int first, unused;  //",
        step_checks.check_large_offsets,
    ),
    Mutant("no advance", KERNEL, "global(span.counter)[k].values[i] = shared.next[i];", ";", step_checks.check_one),
    Mutant("the first counter alone advances", KERNEL, "k < span.parameters;", "k < 1;", step_checks.check_one),
    Mutant("scalar state does not advance", KERNEL, "i = 0; i <= SCALARS", "i = 0; i < 1", step_checks.check_counting),
    Mutant("every chunk advances", KERNEL, "+ 1 == span.chunks;", "+ 1 <= span.chunks;", step_checks.check_backward),
    Mutant(
        "the ticket is kept",
        KERNEL,
        "if (threadIdx.x == 0) global(span.counter)->ticket = 0;",
        "",
        step_checks.check_one,
    ),
    Mutant(
        "constants are another span's",
        KERNEL,
        "entered = chunk.span != current;",
        "entered = current == ~0u;",
        step_checks.check_backward,
    ),
    Mutant(
        "block size is taken for granted", KERNEL, "4 * blockDim.x - (", "4 * 64 - (", step_checks.check_wide_blocks
    ),
    Mutant(
        "doubles' second half is left out",
        KERNEL,
        "% 4 ? WIDTH :",
        "% 4 ? 4 * blockDim.x :",
        step_checks.check_wide_blocks,
    ),
    Mutant(
        "grad_scale is ignored", KERNEL, "launch.grad_scale ? *launch.grad_scale : 1.0f", "1.0f", step_checks.check_one
    ),
    Mutant(
        "found_inf is compared with 1",
        KERNEL,
        "*launch.found_inf != 0",
        "*launch.found_inf == 1",
        step_checks.check_skipping,
    ),
    Mutant(
        "found_inf is not read",
        KERNEL,
        "launch.found_inf && *",
        "launch.found_inf && 0 * *",
        step_checks.check_skipping,
    ),
    Mutant(
        "found_inf is compared as bits",
        KERNEL,
        "*launch.found_inf != 0",
        "same_bits<unsigned>(*launch.found_inf) != 0",
        step_checks.check_skipping,
    ),
    Mutant(
        "no barrier after the constants", KERNEL, PREPARE + "    __syncthreads();", PREPARE, step_checks.check_backward
    ),
    Mutant(
        "no barrier after the span",
        KERNEL,
        "launch.spans[chunk.span];\n      __syncthreads();",
        "launch.spans[chunk.span];",
        step_checks.check_backward,
    ),
    Mutant(
        "a rounding of bfloat16 that ignores ties", STORAGE, "(bits >> 16 & 1u)", "1u", step_checks.check_wide_blocks
    ),
    Mutant(
        "a rounding of bfloat16 that loses NaN",
        STORAGE,
        "nan ? 0x7fffu",
        "nan && !nan ? 0x7fffu",
        step_checks.check_conversions,
    ),
    Mutant("no barrier after the chunk", KERNEL, "__syncthreads_or(last)", "last", step_checks.check_backward),
    # What only a sanitizer sees:
    Mutant("no fence before the ticket", KERNEL, "__threadfence();\n      last", "last", "thread"),
    Mutant("no barrier after the advance", KERNEL, "->ticket = 0;\n      __syncthreads();", "->ticket = 0;", "thread"),
    Mutant("alignment is ignored", KERNEL, "aligned && lanes == WIDTH", "lanes == WIDTH", "address"),
]
REPORTS = {"thread": "ThreadSanitizer: data race", "address": "misaligned address"}


@pytest.fixture(autouse=True)
def _needs_a_compiler():
    if compiler() is None:
        skip_or_fail("no C++ compiler: set CXX, or install g++.")


def by_name(mutants: list[Mutant]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "mutant", [pytest.param(mutant, id=mutant.name.replace(" ", "-")) for mutant in mutants]
    )


@by_name([mutant for mutant in MUTANTS if callable(mutant.check)])
def test_a_mutant_is_killed(mutant):
    mutant.check(new_device())
    with pytest.raises((AssertionError, RuntimeError)) as killed:
        mutant.check(new_device(edit=edit(mutant.file, mutant.old, mutant.new)))
    if killed.type is RuntimeError:
        assert str(killed.value).startswith("fused_step: block")  # parted at a barrier; not refused by the compiler


@pytest.mark.slow
@by_name([mutant for mutant in MUTANTS if isinstance(mutant.check, str)])
def test_a_sanitizer_kills_a_mutant(mutant):
    try:
        process = run_sanitized(
            mutant.check, [str(SCRIPT), mutant.check, mutant.file, mutant.old, mutant.new], timeout=300
        )
    except Unavailable as reason:
        skip_or_fail(reason)
    assert process.returncode != 0
    assert REPORTS[mutant.check] in process.stderr


def test_contraction_to_fma_is_killed():
    if "fma" not in Path("/proc/cpuinfo").read_text(errors="ignore").split():
        pytest.skip("this processor has no fused multiply-add.")
    flags = [flag for flag in build.FLAGS if not flag.startswith("-ffp-contract")]
    with mock.patch.object(build, "FLAGS", [*flags, "-ffp-contract=fast", "-mfma"]), pytest.raises(AssertionError):
        step_checks.check_one(new_device())


@pytest.mark.parametrize("change", [("count", 1), ("count", -1), ("first", 1)], ids=["overlap", "gap", "shift"])
def test_a_wrong_table_of_chunks_is_killed(change):
    def wrong(counts, chunk):
        table = chunks_of(counts, chunk)
        field, by = change
        longest = np.argmax(table["count"])
        table[field][longest] = int(table[field][longest]) + by
        return table

    with mock.patch.object(device, "chunks_of", wrong), pytest.raises(AssertionError):
        step_checks.check_one(new_device())


def test_an_upload_that_does_not_wait_is_killed():
    with pytest.raises(AssertionError):
        step_checks.check_uploads(new_device(wait=lambda event: None))


def test_a_mutant_that_does_not_apply_is_an_error():
    source, headers = kernel_texts()
    for old in ("no such text", "__syncthreads"):
        with pytest.raises(LookupError, match="a mutant replaces what is there once"):
            edit(KERNEL, old, "")({KERNEL: source, **headers})
