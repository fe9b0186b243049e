// One launch updates every tensor of every group. The host writes what to do as chunks; a block takes chunk after chunk.
#include "arithmetic.cuh"
#include "storage.cuh"
#include "rule.cuh"  // the traced rules: Variant0, Variant1, ... and EACH_VARIANT

#ifndef SHARED
#define SHARED(Type, name) __shared__ Type name
#endif

// Written by the host alone: one block's piece of a span.
struct Chunk {
  unsigned long long first;  // element of the span
  unsigned count, span;
};

// Written by the device alone, one for each parameter: its step, its scalar state, and how many chunks are done.
struct Counter {
  double values[1 + SCALARS];
  unsigned ticket, unused;
};

// Written by the host alone: neighbouring parameters with one history, updated as if they were one tensor.
struct Span {
  void* parameter;
  const void* gradient;
  void* state[STATES];
  Counter* counter;  // of the first parameter; the others' follow
  unsigned group, variant, parameters, chunks;
};

struct Launch {
  const Chunk* chunks;
  const Span* spans;
  const double* hyperparameters;  // a row for each group
  const float* grad_scale;        // may be null
  const float* found_inf;         // may be null
  unsigned long long count;       // of chunks
};

// What a block keeps while it stays in one span.
struct Shared {
  double next[1 + SCALARS];     // the counter's values after this step
  double constants[CONSTANTS];  // a Variant::Constants
};

template <class Variant>
__device__ inline void prepare(const Launch& launch, const Span& span, Shared& shared) {
  typedef typename Variant::Constants Constants;
  static_assert(sizeof(Constants) <= sizeof(shared.constants), "the constants fit");
  const double* before = global(span.counter)->values;
  for (int i = 1; i <= SCALARS; i++) shared.next[i] = before[i];
  shared.next[0] = before[0] + 1;
  Constants constants;
  Variant::scalars(launch.hyperparameters + span.group * HYPERPARAMETERS, shared.next[0], before + 1, constants, shared.next + 1);
  constants.grad_scale = typename Variant::real(launch.grad_scale ? *launch.grad_scale : 1.0f);
  *reinterpret_cast<Constants*>(shared.constants) = constants;
}

// Lane t of a warp owns elements 4t to 4t+3 of each tile of 128, counted from the span's start, whatever the alignment.
// It takes them at once, doubles in two halves: more would not fit the registers.
template <class Variant>
__device__ inline void sweep(const Launch& launch, const Span& span, const Chunk& chunk, Shared& shared, bool entered) {
  typedef typename Variant::real real;
  constexpr unsigned WIDTH = sizeof(real) == 8 ? 2 : 4;
  typename Variant::Parameter* parameter = global(static_cast<typename Variant::Parameter*>(span.parameter) + chunk.first);
  const typename Variant::Gradient* gradient = global(static_cast<const typename Variant::Gradient*>(span.gradient) + chunk.first);
  typename Variant::State* state[Variant::states + 1];  // + 1: an array of none is no C++
  bool all_aligned = aligned<WIDTH>(parameter) && aligned<WIDTH>(gradient);
#pragma unroll
  for (int k = 0; k < Variant::states; k++) {
    state[k] = global(static_cast<typename Variant::State*>(span.state[k]) + chunk.first);
    all_aligned = all_aligned && aligned<WIDTH>(state[k]);
  }
  unsigned i = 4 * threadIdx.x;
  if (entered) {  // memory is at work while one thread computes the constants
    if (i < chunk.count) {
      prefetch(parameter + i);
      prefetch(gradient + i);
#pragma unroll
      for (int k = 0; k < Variant::states; k++) prefetch(state[k] + i);
    }
    if (threadIdx.x == 0) prepare<Variant>(launch, span, shared);
    __syncthreads();
  }
  const auto& constants = *reinterpret_cast<const typename Variant::Constants*>(shared.constants);
#pragma unroll 1
  for (; i < chunk.count; i += (i + WIDTH) % 4 == 0 ? 4 * blockDim.x + WIDTH - 4 : WIDTH) {

    asm volatile("" ::: "memory");
    typename Variant::Parameter* parameter = global(static_cast<typename Variant::Parameter*>(span.parameter) + chunk.first);
    const typename Variant::Gradient* gradient = global(static_cast<const typename Variant::Gradient*>(span.gradient) + chunk.first);
    typename Variant::State* state[Variant::states + 1];  // + 1: an array of none is no C++
#pragma unroll
    for (int k = 0; k < Variant::states; k++) state[k] = global(static_cast<typename Variant::State*>(span.state[k]) + chunk.first);
    const unsigned lanes = chunk.count - i < WIDTH ? chunk.count - i : WIDTH;
    const bool wide = all_aligned && lanes == WIDTH;
    real p[WIDTH], g[WIDTH], s[Variant::states + 1][WIDTH];
    if (wide) {
      load(parameter + i, p);
      load(gradient + i, g);
#pragma unroll
      for (int k = 0; k < Variant::states; k++) load(state[k] + i, s[k]);
    } else {
      load(parameter + i, lanes, p);
      load(gradient + i, lanes, g);
#pragma unroll
      for (int k = 0; k < Variant::states; k++) load(state[k] + i, lanes, s[k]);
    }
#pragma unroll
    for (unsigned lane = 0; lane < WIDTH; lane++) {
      real of_lane[Variant::states + 1];
#pragma unroll
      for (int k = 0; k < Variant::states; k++) of_lane[k] = s[k][lane];
      Variant::update(constants, p[lane], g[lane], of_lane);
#pragma unroll
      for (int k = 0; k < Variant::states; k++) s[k][lane] = of_lane[k];
    }
    if (wide) {
      store(parameter + i, p);
#pragma unroll
      for (int k = 0; k < Variant::states; k++) store(state[k] + i, s[k]);
    } else {
      store(parameter + i, lanes, p);
#pragma unroll
      for (int k = 0; k < Variant::states; k++) store(state[k] + i, lanes, s[k]);
    }
  }
}

// 256 threads, 4 blocks a multiprocessor: 64 registers a thread.
extern "C" __global__ void __launch_bounds__(256, 4) fused_step(const Launch launch) {
  SHARED(Shared, shared);
  if (launch.found_inf && *launch.found_inf != 0) return;  // a skipped step changes nothing, the counters included
  unsigned current = ~0u;
  for (unsigned long long c = blockIdx.x; c < launch.count; c += gridDim.x) {
    const Chunk chunk = launch.chunks[c];
    const Span& span = launch.spans[chunk.span];
    switch (span.variant) {
#define SWEEP(Variant) sweep<Variant>(launch, span, chunk, shared, chunk.span != current)
      EACH_VARIANT(SWEEP)
    }
    current = chunk.span;
    // The last chunk of a span advances its counters. Thread 0 has read them before it takes its ticket.
    bool last = false;
    if (threadIdx.x == 0 && span.chunks) {
      __threadfence();
      last = atomicAdd(&global(span.counter)->ticket, 1u) + 1 == span.chunks;
      __threadfence();
    }
    if (__syncthreads_or(last)) {
      for (unsigned k = threadIdx.x; k < span.parameters; k += blockDim.x)
        for (int i = 0; i <= SCALARS; i++) global(span.counter)[k].values[i] = shared.next[i];
      if (threadIdx.x == 0) global(span.counter)->ticket = 0;
      __syncthreads();
    }
  }
}
