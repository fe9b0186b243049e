// One launch updates every tensor of every group. The host writes what to do as chunks; a block takes chunk after chunk.
// Where a rule needs sums over its tensors, launches before it take them: fused_sums, at the end.
#include "arithmetic.cuh"
#include "kept.cuh"
#include "rule.cuh"  // the traced rules: Variant0, Variant1, ... and EACH_VARIANT; their stages and EACH_STAGE
#include "reductions.cuh"
#include "streams.cuh"

#ifndef SHARED
#define SHARED(Type, name) __shared__ Type name
#endif

// Written by the host alone: one block's piece of a span.
struct Chunk {
  unsigned long long first;  // element of the span
  unsigned count, span;
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

// What a block keeps while it stays in one span, and its chunk: in registers, that would be 3 of the 64.
struct Shared {
  Chunk chunk;
  bool entered;  // whether the chunk before was in another span
  Span span;
  // An even number, and not none: after an odd one, doubles of AdamW with amsgrad spill on sm_100.
  double hyperparameters[HYPERPARAMETERS / 2 * 2 + 2];
  double next[1 + SCALARS];     // the counter's values after this step
  double constants[CONSTANTS];  // a Variant::Constants
  Draw draw;                    // of random rounding
  Sums sums;
};

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
  for (unsigned i = thread_of_block(); i < HYPERPARAMETERS; i += 32)
    shared.hyperparameters[i] = hyperparameter(launch, row + i);
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
  if constexpr (Stored<Variant>::draws)
    shared.draw = draw_of(shared.hyperparameters[SEED], shared.next[0], shared.span.number);
}

// The tiles of a lane whose loads are under way together. 1,024 threads with 64 bytes each are the 64 KB a multiprocessor
// that an H200 needs, and what Adam's four float32 streams have in one tile. Of what is kept narrower, as split masters
// with states of 2 bytes (40) or 1 byte (32), it takes two. A second one of more than 40, or a third of split24 with
// states of 1 byte (28), would spill. Plain streams were measured with one.
template <class Variant> __device__ constexpr unsigned tiles_at_once(unsigned in_64 = 64 / Stored<Variant>::bytes) {
  return Stored<Variant>::plain || Stored<Variant>::bytes > 40 ? 1 : in_64 > 2 ? in_64 : 2;
}

// Lane t of a warp owns elements 4t to 4t+3 of each tile of 128, counted from the span's start, whatever the alignment.
template <class Variant>
__device__ inline void sweep(const Launch& launch, Shared& shared) {
  const Chunk& chunk = shared.chunk;
  constexpr unsigned WIDTH = Elements<Variant>::WIDTH, TILES = tiles_at_once<Variant>();
  // Of 8-bit states a warp finds the scale of its tile together: those at whose elements the chunk has ended go with it.
  constexpr unsigned TOGETHER = Stored<Variant>::blocks ? ~127u : ~0u;
  const bool aligned = Stored<Variant>::aligned(shared.span, chunk.first);
  unsigned i = 4 * thread_of_block();
  if (shared.entered) {  // memory is at work while one thread computes the constants
    if (i < chunk.count) Stored<Variant>::prefetch(shared.span, chunk.first + i);
    if constexpr (Variant::summed != 0) add_up<Variant>(shared.sums);
    if (threadIdx.x < 32) read_hyperparameters(launch, shared);
    if (threadIdx.x == 0) prepare<Variant>(launch, shared);
    __syncthreads();
  }
  const auto& constants = *reinterpret_cast<const typename Variant::Constants*>(shared.constants);
  Stored<Variant> tiles[TILES] = {};
  unsigned loaded = 0;  // of them
#pragma unroll 1
  for (; (i & TOGETHER) < chunk.count; i += (i + WIDTH) % 4 ? WIDTH : 4 * blockDim.x - (4 - WIDTH)) {
    const unsigned left = i < chunk.count ? chunk.count - i : 0, lanes = left < WIDTH ? left : WIDTH;
    const bool wide = aligned && lanes == WIDTH;
    const unsigned long long first = chunk.first + i;
    Stored<Variant>& stored = tiles[0];
    if (loaded == 0) {
      const bool all = TILES > 1 && aligned && (i & ~127u) + 4 * blockDim.x * (TILES - 1) + 128 <= chunk.count;
      loaded = all ? TILES : 1;
      if (!all) stored.load(shared.span, first, wide, lanes);
#pragma unroll
      for (unsigned tile = 0; all && tile < TILES; tile++)
        tiles[tile].load(shared.span, first + 4 * blockDim.x * tile);
    }
    Elements<Variant> elements;
    stored.decode(elements.value);
    elements.load_means(shared.sums.reduced, first, lanes);
    elements.update(constants);
    // Before the others are rounded, so that it is in no register by then.
    if (launch.write_back) stored.others.write_back(shared.span, first, elements.value, wide, lanes);
    stored.encode(elements.value, shared.draw, first, lanes);
    forget_shared_memory();
    stored.store(shared.span, first, wide, lanes);
#pragma unroll
    for (unsigned tile = 1; tile < TILES; tile++) tiles[tile - 1] = tiles[tile];
    loaded--;
  }
}

// A block's next chunk, by its number: 32 bits, since a table of more would be 64 GB. Nobody is in the one before any more.
__device__ inline void take(const Launch& launch, unsigned c, Shared& shared) {
  if (threadIdx.x == 0) {
    const Chunk chunk = launch.chunks[c];
    shared.entered = c == blockIdx.x || chunk.span != shared.chunk.span;
    shared.chunk = chunk;
    if (shared.entered) shared.span = launch.spans[chunk.span];
    if (STAGES && shared.entered) shared.sums.reduced = launch.reduced[chunk.span];
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
  for (unsigned c = blockIdx.x; c < launch.count; c += gridDim.x) {
    take(launch, c, shared);
    const Span& span = shared.span;
    switch (span.variant) {
#define SWEEP(Variant) sweep<Variant>(launch, shared)
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
