// Arithmetic that gives the same bits on every processor, and as NumPy: no libm, no contraction, no flush to zero.
#pragma once

#ifdef __CUDACC__
__device__ inline float square_root(float x) { return __fsqrt_rn(x); }
__device__ inline double square_root(double x) { return __dsqrt_rn(x); }
__device__ inline float magnitude(float x) { return fabsf(x); }
__device__ inline double magnitude(double x) { return fabs(x); }
#else
#include <cmath>
inline float square_root(float x) { return std::sqrt(x); }
inline double square_root(double x) { return std::sqrt(x); }
inline float magnitude(float x) { return std::fabs(x); }
inline double magnitude(double x) { return std::fabs(x); }
using std::floor;
using std::frexp;
using std::ldexp;
#endif

// Exact, on every processor.
template <class Real> __device__ inline Real whole_below(Real x) { return floor(x); }
template <class Real> __device__ inline Real scaled(Real x, Real n) { return ldexp(x, (int)n); }
template <class Real> __device__ inline Real exponent(Real x) {
  int n;
  frexp(x, &n);
  return Real(n);
}

// The bits of one type read as another; a union, since CUDA's intrinsics for it do not exist on the host.
template <class To, class From> __device__ inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  union { From from; To to; } both;
  both.from = from;
  return both.to;
}

__device__ inline double infinity() { return same_bits<double>(0x7ff0000000000000ull); }
__device__ inline double not_a_number() { return same_bits<double>(0x7ff8000000000000ull); }

// base^count for a whole count, by squaring, as fusedopt.rules.power.
__device__ inline double power(double base, double count) {
  double result = 1;
  for (unsigned long long rest = (unsigned long long)count; rest; rest >>= 1, base *= base)
    if (rest & 1) result *= base;
  return result;
}
