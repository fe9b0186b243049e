// What stages have summed: where it is, and how a block adds it up. No atomics: the end of a launch is the barrier, and
// every order is fixed, so the bits are the same whatever the grid.
#pragma once

#include "storage.cuh"

constexpr unsigned SEGMENT = 4096;  // elements that a warp adds up at a time, in 32 tiles of 128
constexpr unsigned LANES = STAGES ? 256 : 1;  // in which a tensor's segments are added up, however large the blocks are

// Written by the host alone, one for each span: where its stages leave their results, and where they are read.
struct Reduced {
  unsigned long long size, row;  // elements of the span, and of a slice of it along the first axis
  void* to[RESULTS];             // doubles, one a segment; of rows their means, of the arithmetic's type
  const void* from[RESULTS];     // the same; or those of all of the group's spans
  unsigned long long runs[RESULTS];
};

// What a block keeps of it while it stays in one span.
struct Sums {
  Reduced reduced;
  const void* of[RESULTS];  // what `values` are the sums of
  double values[RESULTS];
  double lanes[LANES];
};

// threadIdx.x, read each time: what is computed from it before the loop over chunks would be up to 3 of the registers.
__device__ inline unsigned thread_of_block() {
#ifdef __CUDACC__
  unsigned thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
#else
  return threadIdx.x;
#endif
}

// 256 lanes add up a share of the segments each, in order; then a tree adds up the lanes. Each block does so by itself:
// that is 16 bytes of the second-level cache for every 4,096 elements and sum, less than a hundredth of a step's traffic.
__device__ inline double added_up(const double* segments, unsigned long long count, double* lanes) {
  const unsigned thread = thread_of_block();
  for (unsigned lane = thread; lane < LANES; lane += blockDim.x) {
    double sum = 0;
    for (unsigned long long i = lane; i < count; i += LANES) sum += segments[i];
    lanes[lane] = sum;
  }
  for (unsigned half = LANES / 2; half; half /= 2) {
    __syncthreads();
    for (unsigned lane = thread; lane < half; lane += blockDim.x) lanes[lane] += lanes[lane + half];
  }
  __syncthreads();
  return lanes[0];
}

// The sums that a launch starts from. Those of a group stay from span to span.
template <class Variant> __device__ inline void add_up(Sums& sums) {
#pragma unroll 1
  for (int i = 0; i < RESULTS; i++) {
    if (!(Variant::summed >> i & 1) || sums.of[i] == sums.reduced.from[i]) continue;
    const double sum = added_up(global(static_cast<const double*>(sums.reduced.from[i])), sums.reduced.runs[i], sums.lanes);
    __syncthreads();  // all have compared, and read the sum
    if (threadIdx.x == 0) {  // where nothing was summed, the next span's sums begin
      sums.values[i] = sum;
      sums.of[i] = sums.reduced.runs[i] ? sums.reduced.from[i] : nullptr;
    }
    __syncthreads();
  }
}

// For each of the first `lanes` elements from `first` on, the mean of its row.
template <class Variant, class Real, unsigned WIDTH>
__device__ inline void load_means(const Reduced& reduced, unsigned long long first, Real (&means)[RESULTS][WIDTH],
                                  unsigned lanes) {
  unsigned long long row = first / reduced.row, place = first % reduced.row;
#pragma unroll
  for (unsigned lane = 0; lane < WIDTH; lane++) {
    if (lane >= lanes) continue;
#pragma unroll
    for (int i = 0; i < RESULTS; i++)
      if (Variant::spread >> i & 1) means[i][lane] = global(static_cast<const Real*>(reduced.from[i]))[row];
    if (++place == reduced.row) place = 0, row++;
  }
}

// The sum over a warp, in every lane of it.
__device__ inline double warp_sum(double value) {
#pragma unroll
  for (int bits = 16; bits; bits /= 2) value += __shfl_xor_sync(~0u, value, bits);
  return value;
}
