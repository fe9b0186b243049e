// The streams of a variant, each kept in its own way: from a span's arrays to a lane's registers, to the arithmetic's
// values, and back.
#pragma once

#include "kept.cuh"
#include "reductions.cuh"

// Written by the device alone, one for each parameter: its step, its scalar state, and how many chunks are done.
struct Counter {
  double values[1 + SCALARS];
  unsigned ticket, unused;
};

// Written by the host alone: neighbouring parameters with one history, updated as if they were one tensor.
struct Span {
  void* parameter;
  void* gradient;
  void* state[STATES];  // and what lies beside the parameter and the states, in this order
  Counter* counter;     // of the first parameter; the others' follow
  unsigned group, variant, parameters, chunks;
  unsigned number, unused;  // of the first parameter in the optimizer

  __device__ void* array(int place) const { return place == 0 ? parameter : place == 1 ? gradient : state[place - 2]; }
};

// Pointers and constants are read from shared memory each time: kept in registers, they would be up to 40 of the 64.
__device__ inline void forget_shared_memory() { asm volatile("" ::: "memory"); }

// Values of neighbouring elements. Doubles go by two: four of Adam's streams would not fit.
template <class Variant> struct Elements {
  typedef typename Variant::real real;
  static constexpr unsigned WIDTH = sizeof(real) == 8 ? 2 : 4;
  real value[2 + Variant::states][WIDTH];  // p, g, the states
  real means[RESULTS][WIDTH];              // of the rows of the elements

  __device__ void load_means(const Reduced& reduced, unsigned long long first, unsigned lanes) {
    if constexpr (Variant::spread != 0) ::load_means<Variant>(reduced, first, means, lanes);
  }

  // What a stage sums of one element.
  __device__ void terms(const typename Variant::Constants& constants, unsigned lane, real* terms) const {
    real of_lane[Variant::states + 1], of_row[RESULTS];  // + 1: an array of none is no C++
#pragma unroll
    for (int k = 0; k < Variant::states; k++) of_lane[k] = value[2 + k][lane];
#pragma unroll
    for (int k = 0; k < RESULTS; k++) of_row[k] = means[k][lane];
    Variant::terms_of(constants, value[0][lane], value[1][lane], of_lane, of_row, terms);
  }

  __device__ void update(const typename Variant::Constants& constants) {
#pragma unroll
    for (unsigned lane = 0; lane < WIDTH; lane++) {
      real of_lane[Variant::states + 1];
#pragma unroll
      for (int k = 0; k < Variant::states; k++) of_lane[k] = value[2 + k][lane];
      real of_row[RESULTS] = {};
#pragma unroll
      for (int k = 0; k < RESULTS; k++)
        if (Variant::spread >> k & 1) of_row[k] = means[k][lane];
      Variant::update(constants, value[0][lane], value[1][lane], of_lane, of_row);
#pragma unroll
      for (int k = 0; k < Variant::states; k++) value[2 + k][lane] = of_lane[k];
      if (sizeof(real) == 8) forget_shared_memory();  // one after the other: two doubles at once spill
    }
  }
};

// Neighbouring elements as they are kept, in a lane's registers: those of a variant's streams from PLACE on.
template <class Variant, class Left = typename Variant::Kept, int PLACE = 0, int BESIDE = 2 + Variant::states>
struct Stored;

template <class Variant, int PLACE, int BESIDE> struct Stored<Variant, Streams<>, PLACE, BESIDE> {
  static constexpr bool plain = true, draws = false, blocks = false;
  static constexpr unsigned bytes = 0;

  static __device__ bool aligned(const Span&, unsigned long long) { return true; }
  static __device__ void prefetch(const Span&, unsigned long long) {}
  template <class... Lanes> __device__ void load_each(const Span&, unsigned long long, Lanes...) {}
  template <class Values> __device__ void decode(Values&) const {}
  template <class Values> __device__ void encode_each(const Values&, const Words&, unsigned) {}
  template <class... Lanes> __device__ void store_each(const Span&, unsigned long long, Lanes...) const {}
};

template <class Variant, class Kept, class... Left, int PLACE, int BESIDE>
struct Stored<Variant, Streams<Kept, Left...>, PLACE, BESIDE> {
  typedef Stored<Variant, Streams<Left...>, PLACE + 1, BESIDE + Kept::beside> Others;
  static constexpr unsigned WIDTH = Elements<Variant>::WIDTH;
  static constexpr bool reads = Variant::reads >> PLACE & 1;
  static constexpr bool plain = Kept::plain && Others::plain;
  static constexpr bool draws = Kept::draws || Others::draws, blocks = (reads && Kept::blocks) || Others::blocks;
  static constexpr unsigned bytes = (reads ? WIDTH * Kept::bytes : 0) + Others::bytes;  // that are loaded by a lane
  static constexpr unsigned NOISE = PLACE > 1 ? PLACE - 1 : 0;
  typename Kept::template Raw<WIDTH> raw;
  Others others;

  static __device__ Place place(const Span& span, unsigned long long first) {
    return {span.array(PLACE), Kept::beside ? span.array(BESIDE) : nullptr, first};
  }

  static __device__ bool aligned(const Span& span, unsigned long long first) {
    return (!reads || Kept::template aligned<WIDTH>(place(span, first))) && Others::aligned(span, first);
  }

  static __device__ void prefetch(const Span& span, unsigned long long first) {
    Kept::prefetch(place(span, first));
    Others::prefetch(span, first);
  }

  // Without `lanes` all of them are moved, by one access an array; with it the first `lanes`, one by one.
  template <class... Lanes> __device__ void load_each(const Span& span, unsigned long long first, Lanes... lanes) {
    if constexpr (reads) Kept::load(place(span, first), raw, lanes...);
    others.load_each(span, first, lanes...);
  }
  __device__ void load(const Span& span, unsigned long long first, bool wide = true, unsigned lanes = WIDTH) {
    wide ? load_each(span, first) : load_each(span, first, lanes);
  }

  template <class Values> __device__ void decode(Values& values) const {
    if constexpr (reads) Kept::decode(raw, values[PLACE]);
    others.decode(values);
  }

  template <class Values> __device__ void encode_each(const Values& values, const Words& words, unsigned lanes) {
    if constexpr (PLACE != 1) Kept::template encode<NOISE>(values[PLACE], raw, words, lanes);
    others.encode_each(values, words, lanes);
  }
  template <class Values>
  __device__ void encode(const Values& values, const Draw& draw, unsigned long long first, unsigned lanes) {
    Words words = {};
    if constexpr (draws) words = words_of(draw, first);
    encode_each(values, words, lanes);
  }

  template <class... Lanes> __device__ void store_each(const Span& span, unsigned long long first, Lanes... lanes) const {
    if constexpr (PLACE != 1) Kept::store(place(span, first), raw, lanes...);
    others.store_each(span, first, lanes...);
  }
  __device__ void store(const Span& span, unsigned long long first, bool wide, unsigned lanes) const {
    wide ? store_each(span, first) : store_each(span, first, lanes);
  }

  // The gradient, which is in the second place, where it is asked for.
  template <class Values>
  __device__ void write_back(const Span& span, unsigned long long first, const Values& values, bool wide, unsigned lanes) {
    static_assert(PLACE == 1, "the gradient");
    Kept::template encode<0>(values[PLACE], raw, Words(), lanes);
    wide ? Kept::store(place(span, first), raw) : Kept::store(place(span, first), raw, lanes);
  }
};
