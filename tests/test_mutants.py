"""The guards of the emulated device, seen red: each mutant of the kernel or of what feeds it is killed by its check."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from emulated import new_device
from emulator import build
from emulator.build import Unavailable, compiler, run_sanitized, skip_or_fail
from fusedopt.backends import device
from fusedopt.backends.device import kernel_texts
from fusedopt.layout import chunks_of
from kept_checks import check_kept
from mutation import edit
from step_checks import (
    check_backward,
    check_conversions,
    check_counting,
    check_large_offsets,
    check_one,
    check_skipping,
    check_stages,
    check_uploads,
    check_wide_blocks,
)

SCRIPT = Path(__file__).with_name("sanitized_steps.py")
KERNEL, STORAGE, RULE = "fused_step.cu", "storage.cuh", "rule.cuh"
SUMS, REDUCTIONS = "fused_sums.cuh", "reductions.cuh"
STREAMS, KEPT, RANDOM = "streams.cuh", "kept.cuh", "random.cuh"
SUM_RUNS = "shared)\n      EACH_STAGE(SUM_RUNS)\n    }"
PREPARE = "if (threadIdx.x == 0) prepare<Variant>(launch, shared);\n"


# By the check that fails on it, or that the emulator stops: name, file, what is there once, what comes in its place.
# None of them writes outside its arrays, which would end the tests' process.
KILLED = {
    check_one: [
        ("a wrong constant", RULE, "real(new_beta2);", "real(new_beta2 + 1e-7);"),
        ("a wrong step", KERNEL, "before[0] + 1;", "before[0] + 2;"),
        (
            "states swapped by the rule",
            RULE,
            "s[0] = new_exp_avg;\n    s[1] = new_exp_avg_sq;",
            "s[1] = new_exp_avg;\n    s[0] = new_exp_avg_sq;",
        ),
        ("states swapped in memory", STREAMS, "state[place - 2]", "state[STATES + 1 - place]"),
        ("a dropped tail", STREAMS, ": store_each(span, first, lanes);", ": void();"),
        ("one lane too few", KERNEL, "chunk.count ? chunk.count - i", "chunk.count ? chunk.count - i - 1"),
        ("no advance", KERNEL, "global(span.counter)[k].values[i] = shared.next[i];", ";"),
        ("the first counter alone advances", KERNEL, "k < span.parameters;", "k < 1;"),
        ("the ticket is kept", KERNEL, "if (threadIdx.x == 0) global(span.counter)->ticket = 0;", ""),
        ("grad_scale is ignored", KERNEL, "launch.grad_scale ? *launch.grad_scale : 1.0f", "1.0f"),
    ],
    check_large_offsets: [
        ("one lane too many", KERNEL, "chunk.count ? chunk.count - i", "chunk.count ? chunk.count - i + 1"),
        ("an unmasked store", STREAMS, ": store_each(span, first, lanes);", ": store_each(span, first, WIDTH);"),
        (
            "a 32-bit index",
            STREAMS,
            "place(const Span& span, unsigned long long first)",
            "place(const Span& span, unsigned first)",
        ),
        ("a 32-bit place of a chunk", KERNEL, "unsigned long long first;  //", "unsigned first, unused;  //"),
        (
            "a 32-bit offset in bytes",
            KEPT,
            "global(static_cast<T*>(array)) + first",
            "global(static_cast<T*>(array)) + unsigned(4 * first) / 4",
        ),
    ],
    check_counting: [("scalar state does not advance", KERNEL, "i = 0; i <= SCALARS", "i = 0; i < 1")],
    check_skipping: [
        ("found_inf is compared with 1", KERNEL, "*launch.found_inf != 0", "*launch.found_inf == 1"),
        ("found_inf is not read", KERNEL, "launch.found_inf && *", "launch.found_inf && 0 * *"),
        ("found_inf is compared as bits", KERNEL, "*launch.found_inf != 0", "same_bits<unsigned>(*launch.found_inf)"),
    ],
    check_backward: [
        ("every chunk advances", KERNEL, "+ 1 == span.chunks;", "+ 1 <= span.chunks;"),
        (
            "constants of another span",
            KERNEL,
            "if (shared.entered) {  //",
            "if (shared.entered && chunk.span == 0) {  //",
        ),
        ("no barrier after the constants", KERNEL, PREPARE + "    __syncthreads();", PREPARE),
        ("each chunk is in the first one's span", KERNEL, "|| chunk.span != shared.chunk.span", ""),
        ("no barrier after the span", KERNEL, "[chunk.span];\n  }\n  __syncthreads();", "[chunk.span];\n  }"),
        ("no barrier after the chunk", KERNEL, "__syncthreads_or(last)", "last"),
    ],
    check_wide_blocks: [
        ("blocks are taken for 64 threads", KERNEL, "4 * blockDim.x - (", "4 * 64 - ("),
        ("half of the doubles is left out", KERNEL, "% 4 ? WIDTH :", "% 4 ? 4 * blockDim.x :"),
    ],
    check_stages: [
        ("a row's mean is its sum", SUMS, "real(totals[k] / double(length))", "real(totals[k])"),
        (
            "the last row of four elements is the first",
            REDUCTIONS,
            "++place == reduced.row",
            "place++ == reduced.row + 4",
        ),
        ("sums of another span", REDUCTIONS, "sums.of[i] == sums.reduced.from[i]", "sums.of[i]"),
        ("the first segment is left out", REDUCTIONS, "i = lane; i < count", "i = lane + 1; i < count"),
        ("half of the lanes", REDUCTIONS, "half = LANES / 2", "half = 8"),
        ("half of a warp", REDUCTIONS, "bits = 16", "bits = 8"),
        ("a column twice", SUMS, "double(sums[k][3])", "double(sums[k][2])"),
        ("the last segment is whole", SUMS, "unsigned(count - done) : SEGMENT", "SEGMENT : SEGMENT"),
        ("every run is the first", SUMS, "first = run * length", "first = 0 * run * length"),
        (
            "no barrier after the sums",
            SUMS,
            "shared)\n      EACH_STAGE(SUM_RUNS)\n    }\n    __syncthreads();",
            SUM_RUNS,
        ),
    ],
    check_kept: [
        ("a master that is not written", KEPT, "raw.beside.lane[lane] = values[lane];", ";"),
        ("a remainder without its sign", KEPT, ".bits - unsigned(rest < 0);", ".bits;"),
        ("24 bits are cut", KEPT, "bits = nearest<8>(bits);", "bits &= ~0xffu;"),
        ("ties go up", KEPT, "(bits >> DROPPED & 1u)", "1u"),
        ("each NaN has its own bits", KEPT, "> EXPONENT ? NOT_A_NUMBER : bits", "> ~0u ? NOT_A_NUMBER : bits"),
        ("nothing is compensated", KEPT, "narrow(values[lane] - kept, ", "narrow(kept - kept, "),
        ("small halves are rounded as large ones", KEPT, "< 0x1p-14f", "< 0"),
        ("one round less", RANDOM, "round < 7", "round < 6"),
        ("half of the seed", RANDOM, "(unsigned)(whole >> 32)}", "0u}"),
        ("the numbers of the last step", RANDOM, "(unsigned long long)step, number", "0, number"),
        ("the numbers of another parameter", RANDOM, "step, number};\n}", "step, 0u};\n}"),
        ("the same numbers for each state", RANDOM, "0x9e3779b1u * multiplier(stream - 1)", "1u"),
        ("numbers of a chunk's elements", KERNEL, "shared.draw, first, lanes", "shared.draw, i, lanes"),
        ("the largest of a lane", KEPT, "scale_of(warp_largest(largest))", "scale_of(largest)"),
        ("one warp alone writes its scales", KEPT, "threadIdx.x % 32 == 0", "threadIdx.x == 0"),
        ("lanes leave their warp", KERNEL, "blocks ? ~127u : ~0u", "blocks ? ~0u : ~0u"),
        ("what is no element is the largest", KEPT, "lane < lanes && size", "size"),
        ("scales of a chunk", KEPT, "+ at.first / 128", "+ at.first % 256 / 128"),
        ("a tiny scale", KEPT, "largest < (127u - 80u)", "largest < (127u - 90u)"),
        ("zero instead of the smallest v", KEPT, "* 0x1p-17f) : 0.0f", "* 0x1p-17f) : smallest / 2"),
        ("codes are cut", KEPT, "+ (odd << (DROPPED - 17))", ""),
        ("beside another parameter", STREAMS, "BESIDE + Kept::beside", "BESIDE"),
        ("the same tile twice", KERNEL, "first + 4 * blockDim.x * tile", "first"),
        ("the span's number is forgotten", KERNEL, "shared.next[0], shared.span.number", "shared.next[0], 0"),
    ],
    check_conversions: [
        ("ties of bfloat16 round up", STORAGE, "(bits >> 16 & 1u)", "1u"),
        ("NaN of bfloat16 is rounded", STORAGE, "nan ? 0x7fffu", "nan && !nan ? 0x7fffu"),
    ],
}
# By the sanitizer that sees it.
SANITIZED = {
    "thread": [
        ("no fence before the ticket", KERNEL, "__threadfence();\n      last", "last"),
        ("no barrier after the advance", KERNEL, "->ticket = 0;\n      __syncthreads();", "->ticket = 0;"),
    ],
    "address": [("alignment is ignored", KERNEL, "aligned && lanes == WIDTH", "lanes == WIDTH")],
}
REPORTS = {"thread": "ThreadSanitizer: data race", "address": "misaligned address"}


@pytest.fixture(autouse=True)
def _needs_a_compiler():
    if compiler() is None:
        skip_or_fail("no C++ compiler: set CXX, or install g++.")


def each(mutants: Mapping[Any, Sequence[tuple[str, ...]]]) -> pytest.MarkDecorator:
    found = [pytest.param(check, mutant, id=mutant[0]) for check, some in mutants.items() for mutant in some]
    return pytest.mark.parametrize(("check", "mutant"), found)


@functools.cache
def passes(check):
    """A check fails on a mutant for what it is, if it passes without."""
    check(new_device())


@each(KILLED)
def test_a_mutant_is_killed(check, mutant):
    passes(check)
    with pytest.raises((AssertionError, RuntimeError)) as killed:
        check(new_device(edit=edit(*mutant[1:])))
    if killed.type is RuntimeError:
        assert re.match(
            "fused_(step|sums): block", str(killed.value)
        )  # parted at a barrier; not refused by the compiler


@pytest.mark.slow
@each(SANITIZED)
def test_a_sanitizer_kills_a_mutant(check, mutant):
    try:
        process = run_sanitized(check, [str(SCRIPT), check, *mutant[1:]], timeout=300)
    except Unavailable as reason:
        skip_or_fail(reason)
    assert process.returncode != 0
    assert REPORTS[check] in process.stderr


def test_contraction_to_fma_is_killed():
    if "fma" not in Path("/proc/cpuinfo").read_text(errors="ignore").split():
        # Its build could not run; CI's processors have one.
        pytest.skip("this processor has no fused multiply-add: none that a build could contract to")
    flags = [flag for flag in build.FLAGS if not flag.startswith("-ffp-contract")]
    with (
        mock.patch.object(build, "FLAGS", [*flags, "-O2", "-ffp-contract=fast", "-mfma"]),
        pytest.raises(AssertionError),
    ):
        check_one(new_device())


@pytest.mark.parametrize("change", [("count", 1), ("count", -1), ("first", 1)], ids=["overlap", "gap", "shift"])
def test_a_wrong_table_of_chunks_is_killed(change):
    def wrong(counts, chunk):
        table = chunks_of(counts, chunk)
        field, by = change
        longest = np.argmax(table["count"])
        table[field][longest] = int(table[field][longest]) + by
        return table

    with mock.patch.object(device, "chunks_of", wrong), pytest.raises(AssertionError):
        check_one(new_device())


def test_an_upload_that_does_not_wait_is_killed():
    with pytest.raises(AssertionError):
        check_uploads(new_device(wait=lambda event: None))


def test_a_mutant_that_does_not_apply_is_an_error():
    source, headers = kernel_texts()
    for old in ("no such text", "__syncthreads"):
        with pytest.raises(LookupError, match="a mutant replaces what is there once"):
            edit(KERNEL, old, "")({KERNEL: source, **headers})
