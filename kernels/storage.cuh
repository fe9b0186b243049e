// Elements in memory: their types, what these hold of the arithmetic's values, and how neighbours are moved at once.
#pragma once

#include "arithmetic.cuh"

struct Half { unsigned short bits; };
struct BFloat16 { unsigned short bits; };

__device__ inline void widen(float stored, float& value) { value = stored; }
__device__ inline void widen(double stored, double& value) { value = stored; }
__device__ inline void widen(float stored, double& value) { value = stored; }
__device__ inline void narrow(double value, float& stored) { stored = (float)value; }
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

// One value in global memory. In PTX: of an address that was a number, the compiler does not believe that it is global.
template <class T> __device__ inline T read(unsigned long long address) {
  T value;
#ifdef __CUDACC__
  if constexpr (sizeof(T) == 8)
    asm volatile("ld.global.f64 %0, [%1];" : "=d"(value) : "l"(address));
  else
    asm volatile("ld.global.f32 %0, [%1];" : "=f"(value) : "l"(address));
#else
  value = *reinterpret_cast<const T*>(address);
#endif
  return value;
}

// Starts to bring a line into the second-level cache, and waits for nothing.
__device__ inline void prefetch(const void* pointer) {
#ifdef __CUDACC__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(pointer));
#endif
}

// Neighbouring elements, moved at once: four floats or two doubles by 128 bits, four halves or two floats by 64, four
// bytes by 32.
template <class T, unsigned WIDTH> union alignas(sizeof(T) * WIDTH) Pack {
  T lane[WIDTH];
  unsigned word[sizeof(T) * WIDTH / 4];
};

template <unsigned WIDTH, class T> __device__ inline bool aligned(const T* pointer) {
  return reinterpret_cast<unsigned long long>(pointer) % sizeof(Pack<T, WIDTH>) == 0;
}

// In PTX, since for sm_100 the compiler makes single accesses of a copied struct where there are two states or more.
template <class T, unsigned WIDTH> __device__ inline void read(const T* from, Pack<T, WIDTH>& pack) {
#ifdef __CUDACC__
  auto& word = pack.word;
  if constexpr (sizeof(pack) == 16)
    asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3]) : "l"(from));
  else if constexpr (sizeof(pack) == 8)
    asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(word[0]), "=r"(word[1]) : "l"(from));
  else
    asm volatile("ld.global.b32 %0, [%1];" : "=r"(word[0]) : "l"(from));
#else
  pack = *reinterpret_cast<const Pack<T, WIDTH>*>(from);
#endif
}

template <class T, unsigned WIDTH> __device__ inline void write(T* to, const Pack<T, WIDTH>& pack) {
#ifdef __CUDACC__
  auto& word = pack.word;
  if constexpr (sizeof(pack) == 16)
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word[0]), "r"(word[1]), "r"(word[2]),
                 "r"(word[3]) : "memory");
  else if constexpr (sizeof(pack) == 8)
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(word[0]), "r"(word[1]) : "memory");
  else
    asm volatile("st.global.b32 [%0], %1;" ::"l"(to), "r"(word[0]) : "memory");
#else
  *reinterpret_cast<Pack<T, WIDTH>*>(to) = pack;
#endif
}

// The first `lanes` of them, one by one: misaligned, or at the end of a chunk. The others are zero.
template <class T, unsigned WIDTH> __device__ inline void read(const T* from, Pack<T, WIDTH>& pack, unsigned lanes) {
#pragma unroll
  for (unsigned lane = 0; lane < WIDTH; lane++) {
    pack.lane[lane] = T{};
    if (lane < lanes) pack.lane[lane] = from[lane];
  }
}

template <class T, unsigned WIDTH>
__device__ inline void write(T* to, const Pack<T, WIDTH>& pack, unsigned lanes) {
#pragma unroll
  for (unsigned lane = 0; lane < WIDTH; lane++)
    if (lane < lanes) to[lane] = pack.lane[lane];
}
