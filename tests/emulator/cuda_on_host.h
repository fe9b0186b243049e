// The words of CUDA C++ that the kernels use, for a host compiler. A kernel's text is compiled after this header, by
// launcher.cpp; fibers.cpp or threads.cpp, whichever is linked, runs it. Only `x` of the three dimensions is here, and
// only whole warps.
#pragma once

#include <cstdint>
#include <cstring>
#include <source_location>

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

#ifdef EMULATOR_THREADS
#define EMULATOR_LOCAL thread_local constinit
#else
#define EMULATOR_LOCAL
#endif

struct Index { unsigned x; };
extern EMULATOR_LOCAL Index threadIdx, blockIdx;
extern Index blockDim, gridDim;

namespace emulator {

constexpr unsigned WARP = 32;

// Threads wait for each other at the same place in the text, each with a value, and leave with an answer.
struct Meeting {
  const char* call;
  std::source_location place;
  unsigned mask;        // the lanes of the warp that take part; 0 is the whole block
  std::uint64_t value;  // what the thread brings
  unsigned source;      // the lane whose value it takes; in a meeting of the block the answer is the OR of all values
  bool publishes;       // whether the others see what the thread wrote before; after a shuffle they need not
};
std::uint64_t meet(const Meeting&);

// Runs body(argument) as every thread of every block. Returns null, or what went wrong (valid until the next call).
const char* run(unsigned blocks, unsigned threads, unsigned order, void (*body)(const void*), const void* argument);

// A block's copy of the shared variable `slot`; slots are counted when the library is loaded.
unsigned new_shared_slot(std::size_t bytes);
void* shared_memory(unsigned slot);

namespace {  // not inline: the loader would unify such a variable between the libraries of one process
template <class Type, int declaration> const unsigned shared_slot = new_shared_slot(sizeof(Type));
}

inline unsigned lane() { return threadIdx.x % WARP; }

template <class Type>
Type shuffle(const char* call, std::source_location place, unsigned mask, Type value, unsigned source) {
  static_assert(sizeof(Type) == 4 || sizeof(Type) == 8);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(Type));
  bits = meet({call, place, mask, bits, source, false});
  std::memcpy(&value, &bits, sizeof(Type));
  return value;
}

}  // namespace emulator

#define SHARED(Type, name) \
  Type& name = *static_cast<Type*>(emulator::shared_memory(emulator::shared_slot<Type, __COUNTER__>))

inline void __syncthreads(std::source_location place = std::source_location::current()) {
  emulator::meet({"__syncthreads", place, 0, 0, 0, true});
}
inline int __syncthreads_or(int predicate, std::source_location place = std::source_location::current()) {
  return emulator::meet({"__syncthreads_or", place, 0, predicate != 0, 0, true}) != 0;
}
inline void __syncwarp(unsigned mask = ~0u, std::source_location place = std::source_location::current()) {
  emulator::meet({"__syncwarp", place, mask, 0, emulator::lane(), true});
}

template <class Type>
Type __shfl_sync(unsigned mask, Type value, int source, std::source_location place = std::source_location::current()) {
  return emulator::shuffle("__shfl_sync", place, mask, value, unsigned(source) % emulator::WARP);
}
template <class Type>
Type __shfl_xor_sync(unsigned mask, Type value, int bits,
                     std::source_location place = std::source_location::current()) {
  return emulator::shuffle("__shfl_xor_sync", place, mask, value, (emulator::lane() ^ unsigned(bits)) % emulator::WARP);
}
template <class Type>
Type __shfl_down_sync(unsigned mask, Type value, unsigned delta,
                      std::source_location place = std::source_location::current()) {
  const unsigned source = emulator::lane() + delta;  // past the end of the warp a lane keeps its own value
  return emulator::shuffle("__shfl_down_sync", place, mask, value, source < emulator::WARP ? source : emulator::lane());
}
// The largest number of all lanes of a warp, which is all that the kernels ask of it.
inline unsigned __reduce_max_sync(unsigned mask, unsigned value,
                                  std::source_location place = std::source_location::current()) {
  for (unsigned bits = 1; bits < emulator::WARP; bits *= 2) {
    const unsigned other = emulator::shuffle("__reduce_max_sync", place, mask, value, emulator::lane() ^ bits);
    value = other > value ? other : value;
  }
  return value;
}

void __threadfence();
unsigned atomicAdd(unsigned* at, unsigned value);
