// One launch updates every tensor of every group. The host writes what to do as chunks; a block takes chunk after chunk.
// Where a rule needs sums over its tensors, launches before it take them: fused_sums, at the end.
#include "arithmetic.cuh"
#include "storage.cuh"
#include "rule.cuh"  // the traced rules: Variant0, Variant1, ... and EACH_VARIANT; their stages and EACH_STAGE
#include "reductions.cuh"

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
  void* gradient;
  void* state[STATES];
  Counter* counter;  // of the first parameter; the others' follow
  unsigned group, variant, parameters, chunks;
};

struct Launch {
  const Chunk* chunks;
  const Span* spans;
  const double* hyperparameters;      // a row for each group
  const unsigned long long* sources;  // likewise, may be null: addresses to read instead, where not 0
  const float* grad_scale;            // may be null
  const float* found_inf;             // may be null
  unsigned long long count;           // of chunks
  unsigned long long write_back;      // whether gradients are left divided by the scale
  const Reduced* reduced;             // one for each span; null where no rule has stages
  unsigned long long stage;           // which of the stages this launch is
};

// What a block keeps while it stays in one span.
struct Shared {
  Span span;
  // An even number, and not none: after an odd one, doubles of AdamW with amsgrad spill on sm_100.
  double hyperparameters[HYPERPARAMETERS / 2 * 2 + 2];
  double next[1 + SCALARS];     // the counter's values after this step
  double constants[CONSTANTS];  // a Variant::Constants
  Sums sums;
};

// Pointers and constants are read from shared memory each time: kept in registers, they would be up to 40 of the 64.
__device__ inline void forget_shared_memory() { asm volatile("" ::: "memory"); }

// A hyperparameter is in the table, or in a tensor that its source is the address of; the lowest bit says: of doubles.
__device__ inline double hyperparameter(const Launch& launch, unsigned long long place) {
  const unsigned long long source = launch.sources ? launch.sources[place] : 0;
  if (!source) return launch.hyperparameters[place];
  return source & 1 ? read<double>(source - 1) : read<float>(source);
}

// A lane each: one after the other, seven would take seven times as long.
__device__ inline void read_hyperparameters(const Launch& launch, Shared& shared) {
  const unsigned long long row = 1ull * shared.span.group * HYPERPARAMETERS;
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < HYPERPARAMETERS; i += 32) shared.hyperparameters[i] = hyperparameter(launch, row + i);
  __syncwarp();
}

template <class Variant>
__device__ inline void prepare(const Launch& launch, Shared& shared) {
  typedef typename Variant::Constants Constants;
  static_assert(sizeof(Constants) <= sizeof(shared.constants), "the constants fit");
  const double* before = global(shared.span.counter)->values;
  for (int i = 1; i <= SCALARS; i++) shared.next[i] = before[i];
  shared.next[0] = before[0] + 1;
  Constants constants;
  const double grad_scale = launch.grad_scale ? *launch.grad_scale : 1.0f;
  Variant::scalars(shared.hyperparameters, shared.next[0], grad_scale, before + 1, shared.sums.values, constants,
                   shared.next + 1);
  *reinterpret_cast<Constants*>(shared.constants) = constants;
}

// Neighbouring elements in registers. Doubles go by two: four of Adam's streams would not fit.
template <class Variant>
struct Elements {
  typedef typename Variant::real real;
  static constexpr unsigned WIDTH = sizeof(real) == 8 ? 2 : 4;
  real p[WIDTH], g[WIDTH], s[Variant::states + 1][WIDTH];  // + 1: an array of none is no C++
  real means[RESULTS][WIDTH];                              // of the rows of the elements

  __device__ void load_means(const Reduced& reduced, unsigned long long first, unsigned lanes) {
    if constexpr (Variant::spread != 0) ::load_means<Variant>(reduced, first, means, lanes);
  }

  // What a stage sums of one element.
  __device__ void terms(const typename Variant::Constants& constants, unsigned lane, real* terms) const {
    real of_lane[Variant::states + 1], of_row[RESULTS];
#pragma unroll
    for (int k = 0; k < Variant::states; k++) of_lane[k] = s[k][lane];
#pragma unroll
    for (int k = 0; k < RESULTS; k++) of_row[k] = means[k][lane];
    Variant::terms_of(constants, p[lane], g[lane], of_lane, of_row, terms);
  }

  __device__ void update(const typename Variant::Constants& constants) {
#pragma unroll
    for (unsigned lane = 0; lane < WIDTH; lane++) {
      real of_lane[Variant::states + 1];
#pragma unroll
      for (int k = 0; k < Variant::states; k++) of_lane[k] = s[k][lane];
      real of_row[RESULTS] = {};
#pragma unroll
      for (int k = 0; k < RESULTS; k++)
        if (Variant::spread >> k & 1) of_row[k] = means[k][lane];
      Variant::update(constants, p[lane], g[lane], of_lane, of_row);
#pragma unroll
      for (int k = 0; k < Variant::states; k++) s[k][lane] = of_lane[k];
      if (sizeof(real) == 8) forget_shared_memory();  // one after the other: two doubles at once spill
    }
  }
};

// Neighbouring elements in memory. Without `lanes` all of them are moved, by one access a stream; with it the first
// `lanes`, one by one.
template <class Variant>
struct Streams {
  static constexpr unsigned WIDTH = Elements<Variant>::WIDTH;
  typename Variant::Parameter* parameter;
  typename Variant::Gradient* gradient;
  typename Variant::State* state[Variant::states + 1];

  __device__ Streams(const Span& span, unsigned long long first)
      : parameter(global(static_cast<typename Variant::Parameter*>(span.parameter)) + first),
        gradient(global(static_cast<typename Variant::Gradient*>(span.gradient)) + first) {
#pragma unroll
    for (int k = 0; k < Variant::states; k++)
      state[k] = global(static_cast<typename Variant::State*>(span.state[k])) + first;
  }

  // Bits of Variant::reads: the parameter, the gradient, each state.
  static __device__ constexpr bool reads(int stream) { return Variant::reads >> stream & 1; }

  __device__ bool aligned() const {
    bool all = (!reads(0) || ::aligned<WIDTH>(parameter)) && (!reads(1) || ::aligned<WIDTH>(gradient));
#pragma unroll
    for (int k = 0; k < Variant::states; k++) all = all && (!reads(2 + k) || ::aligned<WIDTH>(state[k]));
    return all;
  }

  __device__ void prefetch() const {
    ::prefetch(parameter);
    ::prefetch(gradient);
#pragma unroll
    for (int k = 0; k < Variant::states; k++) ::prefetch(state[k]);
  }

  template <class... Lanes> __device__ void load(Elements<Variant>& elements, Lanes... lanes) const {
    if (reads(0)) ::load(parameter, elements.p, lanes...);
    if (reads(1)) ::load(gradient, elements.g, lanes...);
#pragma unroll
    for (int k = 0; k < Variant::states; k++)
      if (reads(2 + k)) ::load(state[k], elements.s[k], lanes...);
  }

  template <class... Lanes> __device__ void store(const Elements<Variant>& elements, Lanes... lanes) const {
    ::store(parameter, elements.p, lanes...);
#pragma unroll
    for (int k = 0; k < Variant::states; k++) ::store(state[k], elements.s[k], lanes...);
  }
};

// Lane t of a warp owns elements 4t to 4t+3 of each tile of 128, counted from the span's start, whatever the alignment.
template <class Variant>
__device__ inline void sweep(const Launch& launch, const Chunk& chunk, Shared& shared, bool entered) {
  constexpr unsigned WIDTH = Elements<Variant>::WIDTH;
  const bool aligned = Streams<Variant>(shared.span, chunk.first).aligned();
  unsigned i = 4 * threadIdx.x;
  if (entered) {  // memory is at work while one thread computes the constants
    if (i < chunk.count) Streams<Variant>(shared.span, chunk.first + i).prefetch();
    if constexpr (Variant::summed != 0) add_up<Variant>(shared.sums);
    if (threadIdx.x < 32) read_hyperparameters(launch, shared);
    if (threadIdx.x == 0) prepare<Variant>(launch, shared);
    __syncthreads();
  }
  const auto& constants = *reinterpret_cast<const typename Variant::Constants*>(shared.constants);
#pragma unroll 1
  for (; i < chunk.count; i += (i + WIDTH) % 4 ? WIDTH : 4 * blockDim.x - (4 - WIDTH)) {
    const unsigned lanes = chunk.count - i < WIDTH ? chunk.count - i : WIDTH;
    const bool wide = aligned && lanes == WIDTH;
    Elements<Variant> elements;
    const Streams<Variant> from(shared.span, chunk.first + i);
    wide ? from.load(elements) : from.load(elements, lanes);
    elements.load_means(shared.sums.reduced, chunk.first + i, lanes);
    elements.update(constants);
    forget_shared_memory();
    const Streams<Variant> to(shared.span, chunk.first + i);
    wide ? to.store(elements) : to.store(elements, lanes);
    if (launch.write_back) wide ? store(to.gradient, elements.g) : store(to.gradient, elements.g, lanes);
  }
}

// A block's first look at a span. Nobody is in the one before any more.
__device__ inline void enter(const Launch& launch, unsigned span, Shared& shared) {
  if (threadIdx.x == 0) {
    shared.span = launch.spans[span];
    if (STAGES) shared.sums.reduced = launch.reduced[span];
  }
  __syncthreads();
}

// What shared memory holds at first is no sum of anything.
__device__ inline void forget_sums(Shared& shared) {
  if (STAGES && threadIdx.x == 0)
    for (int i = 0; i < RESULTS; i++) shared.sums.of[i] = nullptr;
}

// 256 threads, 4 blocks a multiprocessor: 64 registers a thread.
extern "C" __global__ void __launch_bounds__(256, 4) fused_step(const Launch launch) {
  SHARED(Shared, shared);
  if (launch.found_inf && *launch.found_inf != 0) return;  // a skipped step changes nothing, the counters included
  forget_sums(shared);
  unsigned current = ~0u;
  for (unsigned long long c = blockIdx.x; c < launch.count; c += gridDim.x) {
    const Chunk chunk = launch.chunks[c];
    const bool entered = chunk.span != current;
    current = chunk.span;
    if (entered) enter(launch, chunk.span, shared);
    const Span& span = shared.span;
    switch (span.variant) {
#define SWEEP(Variant) sweep<Variant>(launch, chunk, shared, entered)
      EACH_VARIANT(SWEEP)
    }
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

#include "fused_sums.cuh"
