// The launches before fused_step: what is summed over rows, tensors and groups. Included at its end.
#pragma once

#ifdef EACH_STAGE
// A lane's part of a segment's sums: four columns of each, down the tiles.
template <class Stage> struct Columns {
  typedef typename Stage::real real;
  static constexpr unsigned WIDTH = Elements<Stage>::WIDTH;
  real sums[Stage::terms][4] = {};

  // Tiles whose loads are under way together: 64 bytes a thread, so 64 KB a multiprocessor, which is what an H200 needs.
  // Of narrower streams that is less, and two tiles of LAMB's four, which are 64 registers' work, would spill.
  static constexpr unsigned TILES = WIDTH < 4 || Stage::streams > 2 ? 1 : 4 / Stage::streams;

  __device__ void add(const Shared& shared, unsigned long long first, unsigned count, bool aligned) {
    unsigned i = 4 * (threadIdx.x % 32);
    if constexpr (TILES > 1) {
#pragma unroll 1
      for (; aligned && i + 128 * (TILES - 1) + WIDTH <= count; i += 128 * TILES) {
        Stored<Stage> tiles[TILES];
#pragma unroll
        for (unsigned tile = 0; tile < TILES; tile++) tiles[tile].load(shared.span, first + i + 128 * tile);
#pragma unroll
        for (unsigned tile = 0; tile < TILES; tile++)
          add_terms(shared, tiles[tile], first + i + 128 * tile, 0, WIDTH);
      }
    }
#pragma unroll 1
    for (; i < count; i += 128) {
#pragma unroll
      for (unsigned part = 0; part < 4; part += WIDTH) {
        if (i + part >= count) continue;
        const unsigned lanes = count - i - part < WIDTH ? count - i - part : WIDTH;
        Stored<Stage> stored;
        stored.load(shared.span, first + i + part, aligned && lanes == WIDTH, lanes);
        add_terms(shared, stored, first + i + part, part, lanes);
      }
    }
  }

  __device__ void add_terms(const Shared& shared, const Stored<Stage>& stored, unsigned long long first, unsigned part,
                            unsigned lanes) {
    const auto& constants = *reinterpret_cast<const typename Stage::Constants*>(shared.constants);
    Elements<Stage> elements = {};
    stored.decode(elements.value);
    elements.load_means(shared.sums.reduced, first, lanes);
#pragma unroll
    for (unsigned lane = 0; lane < WIDTH; lane++) {
      if (lane >= lanes) continue;
      real terms[Stage::terms];
      elements.terms(constants, lane, terms);
#pragma unroll
      for (int k = 0; k < Stage::terms; k++) sums[k][part + lane] += terms[k];
    }
  }

  __device__ double warp_sum(int k) const {
    return ::warp_sum((double(sums[k][0]) + double(sums[k][1])) + (double(sums[k][2]) + double(sums[k][3])));
  }
};

// A warp takes run after run: a segment of the tensor, or a whole row of it, segment after segment.
template <class Stage>
__device__ inline void sum_runs(const Launch& launch, Shared& shared) {
  const Chunk& chunk = shared.chunk;
  if (shared.entered) {
    if constexpr (Stage::summed != 0) add_up<Stage>(shared.sums);
    if (threadIdx.x < 32) read_hyperparameters(launch, shared);
    if (threadIdx.x == 0) prepare<Stage>(launch, shared);
    __syncthreads();
  }
  static_assert(!Stage::rows || !Stored<Stage>::blocks, "rows start anywhere, and four neighbours share a scale");
  const Reduced& reduced = shared.sums.reduced;
  const unsigned long long length = Stage::rows ? reduced.row : SEGMENT;
#pragma unroll 1
  for (unsigned turn = threadIdx.x / 32; turn < chunk.count; turn += blockDim.x / 32) {
    const unsigned long long run = chunk.first + turn, first = run * length;
    const unsigned long long count = reduced.size - first < length ? reduced.size - first : length;
    const bool aligned = Stored<Stage>::aligned(shared.span, first);
    double totals[Stage::terms] = {};
#pragma unroll 1
    for (unsigned long long done = 0; done < count; done += SEGMENT) {
      Columns<Stage> columns;
      columns.add(shared, first + done, count - done < SEGMENT ? unsigned(count - done) : SEGMENT, aligned);
#pragma unroll
      for (int k = 0; k < Stage::terms; k++) totals[k] += columns.warp_sum(k);
    }
    if (threadIdx.x % 32 != 0) continue;
#pragma unroll
    for (int k = 0; k < Stage::terms; k++) {
      void* to = reduced.to[Stage::first + k];
      if constexpr (Stage::rows)
        global(static_cast<typename Stage::real*>(to))[run] = typename Stage::real(totals[k] / double(length));
      else
        global(static_cast<double*>(to))[run] = totals[k];
    }
  }
}

// One launch a stage, before fused_step. It reads the tensors and writes nothing but what it has summed.
extern "C" __global__ void __launch_bounds__(256, 4) fused_sums(const Launch launch) {
  SHARED(Shared, shared);
  if (launch.found_inf && *launch.found_inf != 0) return;  // nobody will ask
  forget_sums(shared);
  for (unsigned c = blockIdx.x; c < launch.count; c += gridDim.x) {
    take(launch, c, shared);
    switch (shared.span.variant * STAGES + unsigned(launch.stage)) {
#define SUM_RUNS(Stage) sum_runs<Stage>(launch, shared)
      EACH_STAGE(SUM_RUNS)
    }
    __syncthreads();  // the next chunk may be of another span
  }
}
#endif
