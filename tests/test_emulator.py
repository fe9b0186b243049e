"""The shim that runs kernels on the CPU: it keeps a GPU's promises, and shows where a kernel relies on more."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import pytest

from emulator.build import BACKWARD, FORWARD, Unavailable, build, launch, run_sanitized, skip_or_fail

BLOCKS, THREADS, SHUFFLED = 6, 64, 7

KERNELS = """
#include "launch.cuh"
typedef unsigned Row[64];
__device__ inline unsigned here() { return blockIdx.x * blockDim.x + threadIdx.x; }

template <bool barrier> __device__ __forceinline__ void reverse(const Launch& launch) {
  SHARED(Row, row);
  row[threadIdx.x] = launch.in[here()];
  if (barrier) __syncthreads();
  launch.out[here()] = row[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void __launch_bounds__(64) reversed(const Launch launch) { reverse<true>(launch); }
extern "C" __global__ void reversed_without_barrier(const Launch launch) { reverse<false>(launch); }

// out[1 + block] is a block's sum, out[0] the sum of all, by the block that comes last.
template <bool fence, bool ticket> __device__ void sum(const Launch& launch) {
  SHARED(Row, sums);
  unsigned value = launch.in[here()];
  #pragma unroll
  for (unsigned distance = 16; distance > 0; distance /= 2) value += __shfl_down_sync(0xffffffffu, value, distance);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x != 0) return;
  launch.out[1 + blockIdx.x] = sums[0] + sums[1];
  if (fence) __threadfence();
  const unsigned turn = ticket ? atomicAdd(launch.ticket, 1u) : blockIdx.x;
  if (turn + 1 != gridDim.x) return;
  for (unsigned block = 1; block <= gridDim.x; block++) launch.out[0] += launch.out[block];
}
extern "C" __global__ void total(const Launch launch) { sum<true, true>(launch); }
extern "C" __global__ void total_without_fence(const Launch launch) { sum<false, true>(launch); }
extern "C" __global__ void total_without_ticket(const Launch launch) { sum<true, false>(launch); }

template <class Type> __device__ unsigned exchanged() {
  const Type lane = Type(threadIdx.x % 32) - Type(0.5);
  const Type other = __shfl_xor_sync(0xffffffffu, lane, 5), next = __shfl_down_sync(0xffffffffu, lane, 3u);
  return unsigned(other + Type(0.5)) + 100 * unsigned(next + Type(0.5)) +
         10000 * unsigned(__shfl_sync(0xffffffffu, lane, 9) + Type(0.5));
}
extern "C" __global__ void exchanged_float(const Launch launch) { launch.out[here()] = exchanged<float>(); }
extern "C" __global__ void exchanged_double(const Launch launch) { launch.out[here()] = exchanged<double>(); }
extern "C" __global__ void exchanged_int(const Launch launch) { launch.out[here()] = exchanged<int>(); }
extern "C" __global__ void exchanged_unsigned(const Launch launch) { launch.out[here()] = exchanged<unsigned>(); }

extern "C" __global__ void any_is_large(const Launch launch) {
  launch.out[here()] = __syncthreads_or(launch.in[here()] == 300);
}
extern "C" __global__ void leftovers(const Launch launch) {
  SHARED(Row, row);
  launch.out[here()] = row[threadIdx.x];
  row[threadIdx.x] = 0;
}
extern "C" __global__ void diary(const Launch launch) { launch.out[atomicAdd(launch.ticket, 1u)] = here(); }

extern "C" __global__ void upper_half(const Launch launch) {
  SHARED(Row, row);
  if (threadIdx.x < 40) return;
  row[threadIdx.x] = launch.in[here()];
  __syncthreads();
  launch.out[here()] = row[103 - threadIdx.x];
}
extern "C" __global__ void quarter_warps(const Launch launch) {
  const unsigned mask = 0xffu << (threadIdx.x % 32 / 8 * 8);
  launch.out[here()] = __shfl_xor_sync(mask, launch.in[here()], 7);
}

extern "C" __global__ void two_barriers(const Launch) {
  if (threadIdx.x < 7)
    __syncthreads();
  else
    __syncthreads();
}
extern "C" __global__ void barrier_and_warp(const Launch) {
  if (threadIdx.x == 0) __syncwarp();
  __syncthreads();
}
extern "C" __global__ void returned_lane(const Launch launch) {
  if (threadIdx.x == 33) return;
  launch.out[here()] = __shfl_xor_sync(0xffffffffu, here(), 1);
}
extern "C" __global__ void masked_source(const Launch launch) {
  if (threadIdx.x < 8) launch.out[here()] = __shfl_sync(0xffu, here(), 9);
}
extern "C" __global__ void masked_self(const Launch) {
  if (threadIdx.x < 9) __syncwarp(0xffu);
}

extern "C" __global__ void past_the_end(const Launch launch) { launch.out[here() + 1] = launch.in[here()]; }
extern "C" __global__ void past_the_shared(const Launch launch) {
  SHARED(Row, row);
  unsigned* last = row + threadIdx.x;
  __syncthreads();
  last[1] = launch.in[here()];
}
extern "C" __global__ void past_the_frame(const Launch launch) {
  unsigned frame[4] = {};
  unsigned* volatile last = frame;
  __syncthreads();
  launch.out[here()] = last[4 + launch.in[here()] % 2];
}
extern "C" __global__ void misaligned(const Launch launch) {
  launch.out[here()] = unsigned(*reinterpret_cast<const double*>(launch.in + 1));
}
extern "C" __global__ void shared_through_shuffle(const Launch launch) {
  SHARED(Row, row);
  row[threadIdx.x] = launch.in[here()];
  __shfl_sync(0xffffffffu, 0, 0);
  launch.out[here()] = row[threadIdx.x ^ 1];
}
"""
HEADERS = {"launch.cuh": "struct Launch { const unsigned* in; unsigned* out; unsigned* ticket; };\n"}
VARIANTS = {"fibers": (), "ucontext": ("EMULATOR_UCONTEXT",), "threads": ("EMULATOR_THREADS",)}


class Launch(ctypes.Structure):
    _fields_ = (("in_", ctypes.c_void_p), ("out", ctypes.c_void_p), ("ticket", ctypes.c_void_p))


NUMBERS = np.arange(BLOCKS * THREADS, dtype=np.uint32)
ROWS = NUMBERS.reshape(BLOCKS, THREADS)


def result(library: ctypes.CDLL, kernel: str, order: int = FORWARD) -> np.ndarray:
    out, ticket = np.zeros_like(NUMBERS), np.zeros(1, np.uint32)
    arguments = Launch(NUMBERS.ctypes.data, out.ctypes.data, ticket.ctypes.data)
    launch(library, kernel, BLOCKS, THREADS, arguments, order)
    return out.reshape(BLOCKS, THREADS)


def built(variant: str) -> ctypes.CDLL:
    try:
        return build(KERNELS, HEADERS, defines=VARIANTS[variant])
    except Unavailable as reason:
        skip_or_fail(reason)


@pytest.fixture(scope="module", params=VARIANTS)
def library(request: pytest.FixtureRequest) -> ctypes.CDLL:
    return built(request.param)


@pytest.fixture(scope="module", params=["fibers", "ucontext"])
def fibers(request: pytest.FixtureRequest) -> ctypes.CDLL:
    return built(request.param)


@pytest.mark.parametrize("order", [FORWARD, BACKWARD, SHUFFLED])
class TestInEveryOrder:
    def test_a_barrier_shows_a_block_its_shared_memory(self, library, order):
        np.testing.assert_array_equal(result(library, "reversed", order), ROWS[:, ::-1])

    def test_the_last_block_sees_what_all_the_others_wrote(self, library, order):
        out = result(library, "total", order).ravel()
        np.testing.assert_array_equal(out[: BLOCKS + 1], [ROWS.sum(), *ROWS.sum(axis=1)])

    @pytest.mark.parametrize("type_", ["float", "double", "int", "unsigned"])
    def test_shuffles_exchange_lanes(self, library, order, type_):
        lane = NUMBERS % 32
        expected = (lane ^ 5) + 100 * np.where(lane < 29, lane + 3, lane) + 10000 * 9
        np.testing.assert_array_equal(result(library, f"exchanged_{type_}", order).ravel(), expected)

    def test_a_vote_is_one_block_s(self, library, order):
        expected = np.broadcast_to((ROWS == 300).any(axis=1, keepdims=True), ROWS.shape)
        np.testing.assert_array_equal(result(library, "any_is_large", order), expected)

    def test_shared_memory_holds_leftovers_in_each_block(self, library, order):
        assert (result(library, "leftovers", order) == 0xCDCDCDCD).all()

    def test_a_barrier_does_not_wait_for_threads_that_returned(self, library, order):
        expected = np.where(np.arange(THREADS) < 40, 0, ROWS[:, (103 - np.arange(THREADS)) % THREADS])
        np.testing.assert_array_equal(result(library, "upper_half", order), expected)

    def test_a_mask_makes_part_of_a_warp_meet(self, fibers, order):
        np.testing.assert_array_equal(result(fibers, "quarter_warps", order).ravel(), NUMBERS ^ 7)


def test_threads_and_blocks_run_in_the_order_asked_for(fibers):
    forward, backward, shuffled = (result(fibers, "diary", order).ravel() for order in (FORWARD, BACKWARD, SHUFFLED))
    np.testing.assert_array_equal(forward, NUMBERS)
    np.testing.assert_array_equal(backward, NUMBERS[::-1])
    assert sorted(shuffled) == list(NUMBERS)
    assert not np.isin(shuffled[:1], [forward[:1], backward[:1]]).all()


def test_another_order_shows_a_missing_barrier(fibers):
    forward, backward = (result(fibers, "reversed_without_barrier", order) for order in (FORWARD, BACKWARD))
    assert not np.array_equal(forward, backward)


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        ("two_barriers", r"thread 0 waits in __syncthreads at kernel.cuh:\d+, and thread 7 waits in __syncthreads at "),
        ("barrier_and_warp", "thread 0 waits in __syncwarp at .*, and thread 1 waits in __syncthreads at "),
        ("returned_lane", "thread 32 waits in __shfl_xor_sync at .*, and thread 33 has returned"),
        ("masked_source", "thread 0 waits in __shfl_sync at .*, whose mask leaves out lane 9"),
        ("masked_self", "thread 8 waits in __syncwarp at .*, whose mask leaves out lane 8"),
    ],
)
def test_threads_that_cannot_meet_are_reported(fibers, kernel, problem):
    with pytest.raises(RuntimeError, match=f"^{kernel}: block 0: {problem}"):
        result(fibers, kernel)
    np.testing.assert_array_equal(result(fibers, "reversed"), ROWS[:, ::-1])  # and the next launch is sound


def test_half_a_warp_is_refused(library):
    with pytest.raises(RuntimeError, match="threads must be a multiple of 32, got 16"):
        launch(library, "reversed", 1, 16, Launch())


def test_a_launch_struct_of_another_size_is_refused(library):
    with pytest.raises(ValueError, match=r"Launch has 24 bytes in C\+\+, got 8"):
        launch(library, "reversed", 1, 32, bytes(8))


def test_a_text_that_does_not_compile_raises_with_the_compiler_s_words(library):
    with pytest.raises(RuntimeError, match=r"kernel.cuh:1:.*nonsense"):
        build("nonsense", {})


CLEAN = ["reversed", "total", "exchanged_double", "any_is_large", "upper_half"]


def ended(sanitize: str, *kernels: str) -> tuple[int, str]:
    try:
        process = run_sanitized(sanitize, [__file__, sanitize, *kernels])
    except Unavailable as reason:
        skip_or_fail(reason)
    return process.returncode, process.stderr


@pytest.mark.parametrize("sanitize", ["address", "thread"])
def test_a_sanitizer_passes_sound_kernels(sanitize):
    assert ended(sanitize, *CLEAN) == (0, "")


@pytest.mark.parametrize(
    ("sanitize", "kernel", "report"),
    [
        ("address", "past_the_end", "AddressSanitizer: heap-buffer-overflow"),
        ("address", "past_the_shared", "AddressSanitizer: heap-buffer-overflow"),
        ("address", "past_the_frame", "AddressSanitizer: stack-buffer-overflow"),
        ("address", "misaligned", "runtime error: load of misaligned address"),
        ("thread", "reversed_without_barrier", "ThreadSanitizer: data race"),
        ("thread", "shared_through_shuffle", "ThreadSanitizer: data race"),
        ("thread", "total_without_ticket", "ThreadSanitizer: data race"),
        ("thread", "total_without_fence", "ThreadSanitizer: data race"),
    ],
)
def test_a_sanitizer_reports(sanitize, kernel, report):
    status, words = ended(sanitize, kernel)
    assert status != 0
    assert report in words


if __name__ == "__main__":  # under a sanitizer: python test_emulator.py SANITIZER KERNEL...
    sanitized = build(KERNELS, HEADERS, sanitize=sys.argv[1])
    for name in sys.argv[2:]:
        result(sanitized, name, SHUFFLED)
