// How elements are kept in memory: four at a time, widened to the type of the arithmetic when they are loaded.
#pragma once

struct Half { unsigned short bits; };
struct BFloat16 { unsigned short bits; };

// The bits of one type read as another; a union, since CUDA's intrinsics for it do not exist on the host.
template <class To, class From> __device__ inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  union { From from; To to; } both;
  both.from = from;
  return both.to;
}

__device__ inline void widen(float stored, float& value) { value = stored; }
__device__ inline void widen(double stored, double& value) { value = stored; }
__device__ inline void narrow(float value, float& stored) { stored = value; }
__device__ inline void narrow(double value, double& stored) { stored = value; }

__device__ inline void widen(BFloat16 stored, float& value) { value = same_bits<float>((unsigned)stored.bits << 16); }

__device__ inline void narrow(float value, BFloat16& stored) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(stored.bits) : "f"(value));
#else
  const unsigned bits = same_bits<unsigned>(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;  // adding to a NaN could carry into infinity
  stored.bits = (unsigned short)(nan ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}

#ifdef __CUDACC__
__device__ inline void widen(Half stored, float& value) { asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(stored.bits)); }
__device__ inline void narrow(float value, Half& stored) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(stored.bits) : "f"(value)); }
#else
inline void widen(Half stored, float& value) { value = same_bits<_Float16>(stored.bits); }
inline void narrow(float value, Half& stored) { stored.bits = same_bits<unsigned short>((_Float16)value); }
#endif

// A pointer read from a table is generic to the compiler, which would then emit LD and ST instead of LDG and STG.
template <class T> __device__ inline T* global(T* pointer) {
#ifdef __CUDACC__
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

__device__ inline bool aligned(const void* pointer) { return (reinterpret_cast<unsigned long long>(pointer) & 15) == 0; }

// Four elements: one 128-bit access of floats, two of doubles, one 64-bit access of halves.
template <class T> struct alignas(sizeof(T) == 2 ? 8 : 16) Pack { T lane[4]; };

template <class T, class Real>
__device__ inline void load(const T* from, unsigned lanes, bool wide, Real (&to)[4]) {
  if (wide) {
    const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(from);
#pragma unroll
    for (unsigned lane = 0; lane < 4; lane++) widen(pack.lane[lane], to[lane]);
  } else {
#pragma unroll
    for (unsigned lane = 0; lane < 4; lane++) {
      to[lane] = 0;
      if (lane < lanes) widen(from[lane], to[lane]);
    }
  }
}

template <class T, class Real>
__device__ inline void store(T* to, unsigned lanes, bool wide, const Real (&from)[4]) {
  if (wide) {
    Pack<T> pack;
#pragma unroll
    for (unsigned lane = 0; lane < 4; lane++) narrow(from[lane], pack.lane[lane]);
    *reinterpret_cast<Pack<T>*>(to) = pack;
  } else {
#pragma unroll
    for (unsigned lane = 0; lane < 4; lane++)
      if (lane < lanes) narrow(from[lane], to[lane]);
  }
}
