// How a stream is kept, as fusedopt/storage.py has it: what it is widened from and narrowed to, to NumPy's bits, as
// fusedopt/rounding.py and fusedopt/eight_bits.py say. A rule sees none of it.
#pragma once

#include "random.cuh"
#include "storage.cuh"

constexpr unsigned SIGN = 0x80000000u, EXPONENT = 0x7f800000u, NOT_A_NUMBER = 0x7fc00000u;

// The bits of a float, of every NaN the same ones: others could look like a number when they are cut.
__device__ inline unsigned bits_of(float value) {
  const unsigned bits = same_bits<unsigned>(value);
  return (bits & ~SIGN) > EXPONENT ? NOT_A_NUMBER : bits;
}

// These bits with zeros for the last DROPPED. Of infinity and that NaN they are zeros, to which nothing is added that
// carries.
template <unsigned DROPPED> __device__ inline unsigned nearest(unsigned bits) {  // to even in the middle
  return (bits + (bits >> DROPPED & 1u) + ((1u << (DROPPED - 1)) - 1u)) & (~0u << DROPPED);
}

template <unsigned DROPPED> __device__ inline unsigned stochastic(unsigned bits, unsigned noise) {  // 16 bits of noise
  return (bits + (noise >> (16 - DROPPED))) & (~0u << DROPPED);
}

__device__ inline void narrow_stochastically(float value, unsigned noise, BFloat16& stored) {
  stored.bits = (unsigned short)(stochastic<16>(bits_of(value), noise) >> 16);
}

__device__ inline void narrow_stochastically(float value, unsigned noise, Half& stored) {
  const unsigned bits = bits_of(value);
  narrow(same_bits<float>(stochastic<13>(bits, noise)), stored);
  if (magnitude(value) < 0x1p-14f) {  // small halves are multiples of 2^-24: in 2^-40, of which 16 bits are dropped
    const unsigned multiples = (unsigned)(magnitude(value) * 0x1p40f);
    stored.bits = (unsigned short)((multiples + noise) >> 16 | (bits & SIGN) >> 16);
  }
}

// The largest of a warp's numbers, in every lane of it.
__device__ inline unsigned warp_largest(unsigned number) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#pragma unroll
  for (int bits = 16; bits; bits /= 2) {
    const unsigned other = __shfl_xor_sync(~0u, number, bits);
    number = other > number ? other : number;
  }
  return number;
#else
  return __reduce_max_sync(~0u, number);
#endif
}

// Where a stream lies: its array, the one beside it, and the first of the elements that are moved.
struct Place {
  void *array, *beside;
  unsigned long long first;

  template <class T> __device__ T* in_array() const { return global(static_cast<T*>(array)) + first; }
  template <class T> __device__ T* in_beside() const { return global(static_cast<T*>(beside)) + first; }
};

// A stream of one array.
template <class T> struct One {
  static constexpr int beside = 0;  // arrays beside it
  static constexpr bool plain = false, draws = false, blocks = false;
  template <unsigned WIDTH> using Raw = Pack<T, WIDTH>;
  static constexpr unsigned bytes = sizeof(T);  // that are loaded of an element

  template <unsigned WIDTH> static __device__ bool aligned(Place at) { return ::aligned<WIDTH>(at.in_array<T>()); }
  static __device__ void prefetch(Place at) { ::prefetch(at.in_array<T>()); }
  template <unsigned WIDTH, class... Lanes> static __device__ void load(Place at, Pack<T, WIDTH>& raw, Lanes... lanes) {
    read(at.in_array<T>(), raw, lanes...);
  }
  template <unsigned WIDTH, class... Lanes>
  static __device__ void store(Place at, const Pack<T, WIDTH>& raw, Lanes... lanes) {
    write(at.in_array<T>(), raw, lanes...);
  }
};

// A stream of two arrays.
template <class T, class Beside> struct Two {
  static constexpr int beside = 1;
  static constexpr bool plain = false, draws = false, blocks = false;
  template <unsigned WIDTH> struct Raw {
    Pack<T, WIDTH> array;
    Pack<Beside, WIDTH> beside;
  };
  static constexpr unsigned bytes = sizeof(T) + sizeof(Beside);

  template <unsigned WIDTH> static __device__ bool aligned(Place at) {
    return ::aligned<WIDTH>(at.in_array<T>()) && ::aligned<WIDTH>(at.in_beside<Beside>());
  }
  static __device__ void prefetch(Place at) {
    ::prefetch(at.in_array<T>());
    ::prefetch(at.in_beside<Beside>());
  }
  template <class Raw, class... Lanes> static __device__ void load(Place at, Raw& raw, Lanes... lanes) {
    read(at.in_array<T>(), raw.array, lanes...);
    read(at.in_beside<Beside>(), raw.beside, lanes...);
  }
  template <class Raw, class... Lanes> static __device__ void store(Place at, const Raw& raw, Lanes... lanes) {
    write(at.in_array<T>(), raw.array, lanes...);
    write(at.in_beside<Beside>(), raw.beside, lanes...);
  }
};

// Values of T, rounded to the nearest.
template <class T> struct Plain : One<T> {
  static constexpr bool plain = true;

  template <class Real, unsigned WIDTH> static __device__ void decode(const Pack<T, WIDTH>& raw, Real (&values)[WIDTH]) {
#pragma unroll
    for (unsigned lane = 0; lane < WIDTH; lane++) widen(raw.lane[lane], values[lane]);
  }
  template <unsigned STREAM, class Real, unsigned WIDTH>
  static __device__ void encode(const Real (&values)[WIDTH], Pack<T, WIDTH>& raw, const Words&, unsigned) {
#pragma unroll
    for (unsigned lane = 0; lane < WIDTH; lane++) narrow(values[lane], raw.lane[lane]);
  }
};

// Values of T, rounded up or down at random.
template <class T> struct Rounded : Plain<T> {
  static constexpr bool plain = false, draws = true;

  template <unsigned STREAM, unsigned WIDTH>
  static __device__ void encode(const float (&values)[WIDTH], Pack<T, WIDTH>& raw, const Words& words, unsigned) {
#pragma unroll
    for (unsigned lane = 0; lane < WIDTH; lane++)
      narrow_stochastically(values[lane], words.noise<STREAM>(lane), raw.lane[lane]);
  }
};

// The values in float32, and what others see of them, which is written alone.
template <class T> struct Master : Two<T, float> {
  static constexpr unsigned bytes = sizeof(float);

  static __device__ void prefetch(Place at) { ::prefetch(at.in_beside<float>()); }
  template <class Raw, class... Lanes> static __device__ void load(Place at, Raw& raw, Lanes... lanes) {
    read(at.in_beside<float>(), raw.beside, lanes...);
  }
  template <class Raw, unsigned WIDTH> static __device__ void decode(const Raw& raw, float (&values)[WIDTH]) {
#pragma unroll
    for (unsigned lane = 0; lane < WIDTH; lane++) values[lane] = raw.beside.lane[lane];
  }
  template <unsigned STREAM, class Raw, unsigned WIDTH>
  static __device__ void encode(const float (&values)[WIDTH], Raw& raw, const Words&, unsigned) {
#pragma unroll
    for (unsigned lane = 0; lane < WIDTH; lane++) {
      raw.beside.lane[lane] = values[lane];
      narrow(values[lane], raw.array.lane[lane]);
    }
  }
};

// The values in T, and what rounding took of them.
template <class T> struct Compensated : Two<T, T> {
  template <class Raw, unsigned WIDTH> static __device__ void decode(const Raw& raw, float (&values)[WIDTH]) {
#pragma unroll
    for (unsigned lane = 0; lane < WIDTH; lane++) {
      float rest;
      widen(raw.array.lane[lane], values[lane]);
      widen(raw.beside.lane[lane], rest);
      values[lane] += rest;
    }
  }
  template <unsigned STREAM, class Raw, unsigned WIDTH>
  static __device__ void encode(const float (&values)[WIDTH], Raw& raw, const Words&, unsigned) {
#pragma unroll
    for (unsigned lane = 0; lane < WIDTH; lane++) {
      float kept;
      narrow(values[lane], raw.array.lane[lane]);
      widen(raw.array.lane[lane], kept);
      narrow(values[lane] - kept, raw.beside.lane[lane]);
    }
  }
};

template <int BITS> struct Remainder;
template <> struct Remainder<16> { typedef short type; };
template <> struct Remainder<8> { typedef signed char type; };

// The first 16 + BITS bits of a float32, as the nearest BFloat16 and a signed rest.
template <int BITS, bool STOCHASTIC = false> struct Split : Two<BFloat16, typename Remainder<BITS>::type> {
  static constexpr bool draws = STOCHASTIC;

  template <class Raw, unsigned WIDTH> static __device__ void decode(const Raw& raw, float (&values)[WIDTH]) {
#pragma unroll
    for (unsigned lane = 0; lane < WIDTH; lane++) {
      const int rest = raw.beside.lane[lane];
      const unsigned upper = raw.array.lane[lane].bits - unsigned(rest < 0);
      values[lane] = same_bits<float>(upper << 16 | (unsigned(rest) & ((1u << BITS) - 1u)) << (16 - BITS));
    }
  }
  template <unsigned STREAM, class Raw, unsigned WIDTH>
  static __device__ void encode(const float (&values)[WIDTH], Raw& raw, const Words& words, unsigned) {
#pragma unroll
    for (unsigned lane = 0; lane < WIDTH; lane++) {
      unsigned bits = bits_of(values[lane]);
      if constexpr (STOCHASTIC)
        bits = stochastic<8>(bits, words.noise<STREAM>(lane));
      else if constexpr (BITS == 8)
        bits = nearest<8>(bits);
      const auto rest = typename Remainder<BITS>::type(bits >> (16 - BITS));
      raw.beside.lane[lane] = rest;
      raw.array.lane[lane].bits = (unsigned short)((bits >> 16) + unsigned(rest < 0));
    }
  }
};

// Tapered floats of 8 bits, in blocks of 128 that share a scale: the tile of a warp, all of whose lanes come here. A
// number says how far the bits of a magnitude up to 1 are below the CEILING, as a float without its last DROPPED bits.
template <bool SIGNED, int OCTAVES, int DROPPED> struct Codes {
  static constexpr int beside = 1;
  static constexpr bool plain = false, draws = true, blocks = true;
  static constexpr unsigned bytes = 1;
  static constexpr int LARGEST = SIGNED ? 127 : 255, CEILING = (127 + OCTAVES) << 23, NEAREST = CEILING + (22 << 23);
  template <unsigned WIDTH> struct Raw {
    Pack<unsigned char, WIDTH> codes;
    float scale;
  };

  static __device__ float magnitude_of(int number) {  // but for 0
    return same_bits<float>(CEILING - int(same_bits<float>(NEAREST + ((LARGEST - number) << DROPPED))));
  }

  template <unsigned WIDTH> static __device__ bool aligned(Place at) {
    return ::aligned<WIDTH>(at.in_array<unsigned char>());
  }
  static __device__ void prefetch(Place at) { ::prefetch(at.in_array<unsigned char>()); }

  static __device__ float* scale_at(Place at) { return global(static_cast<float*>(at.beside)) + at.first / 128; }
  template <unsigned WIDTH> static __device__ void load(Place at, Raw<WIDTH>& raw) {
    read(at.in_array<unsigned char>(), raw.codes);
    raw.scale = *scale_at(at);
  }
  template <unsigned WIDTH> static __device__ void load(Place at, Raw<WIDTH>& raw, unsigned lanes) {
    read(at.in_array<unsigned char>(), raw.codes, lanes);
    raw.scale = lanes ? *scale_at(at) : 0;
  }
  template <unsigned WIDTH, class... Lanes> static __device__ void store(Place at, const Raw<WIDTH>& raw, Lanes... lanes) {
    write(at.in_array<unsigned char>(), raw.codes, lanes...);
    if (threadIdx.x % 32 == 0) *scale_at(at) = raw.scale;
  }

  template <unsigned WIDTH> static __device__ void decode(const Raw<WIDTH>& raw, float (&values)[WIDTH]) {
#pragma unroll
    for (unsigned lane = 0; lane < WIDTH; lane++) {
      const int code = raw.codes.lane[lane], number = code & LARGEST;
      const float magnitude = number ? magnitude_of(number) : 0.0f;
      values[lane] = (SIGNED && code > LARGEST ? -magnitude : magnitude) * raw.scale;
    }
  }

  template <unsigned STREAM, unsigned WIDTH>
  static __device__ void encode(const float (&values)[WIDTH], Raw<WIDTH>& raw, const Words& words, unsigned lanes) {
    unsigned largest = 0;
#pragma unroll
    for (unsigned lane = 0; lane < WIDTH; lane++) {
      const unsigned size = same_bits<unsigned>(values[lane]) & ~SIGN;
      if (lane < lanes && size > largest) largest = size;
    }
    raw.scale = scale_of(warp_largest(largest));
    const float inverse = raw.scale > 0 ? 1.0f / raw.scale : 0.0f;
#pragma unroll
    for (unsigned lane = 0; lane < WIDTH; lane++) {
      const int number = number_of(values[lane], inverse, words.noise<STREAM>(lane));
      raw.codes.lane[lane] = (unsigned char)(SIGNED && number && values[lane] < 0 ? number + 128 : number);
    }
  }

  // From the bits of the largest of a block: at least 2^-80, so that no magnitude is denormal; NaN where it is not finite.
  static __device__ float scale_of(unsigned largest) {
    const unsigned scale = largest < (127u - 80u) << 23 ? (127u - 80u) << 23 : largest;
    return same_bits<float>(largest == 0 ? 0u : largest >= EXPONENT ? NOT_A_NUMBER : scale);
  }

  static __device__ int number_of(float value, float inverse, unsigned noise) {
    const float magnitude = inverse > 0 ? ::magnitude(value) * inverse : 0.0f, smallest = magnitude_of(1);
    const int odd = int(noise << 1 | 1);
    const int depth = same_bits<int>(float(CEILING - same_bits<int>(magnitude)));
    const int number = LARGEST - ((depth - NEAREST + (odd << (DROPPED - 17))) >> DROPPED);
    const float least = SIGNED ? smallest * (float(odd) * 0x1p-17f) : 0.0f;  // m / sqrt(v) of a v that is 0 is infinite
    return magnitude < smallest ? magnitude > least : number > LARGEST ? LARGEST : number;
  }
};

// Those of a variant, in order: the parameter, the gradient, each state.
template <class... Kept> struct Streams {};
