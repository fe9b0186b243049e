// What fibers.cpp and threads.cpp both need: the order in which things run, and the shared memory of a block.
#pragma once

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda_on_host.h"

namespace emulator {

namespace {

// 0 to count - 1: forward (order 0), backward (1), or shuffled with `order` as the seed.
std::vector<unsigned> arranged(unsigned count, unsigned order) {
  std::vector<unsigned> indices(count);
  std::iota(indices.begin(), indices.end(), 0u);
  if (order == 1) std::reverse(indices.begin(), indices.end());
  if (order > 1) std::shuffle(indices.begin(), indices.end(), std::mt19937(order));
  return indices;
}

std::string refusal(unsigned threads) {
  if (threads != 0 && threads % WARP == 0) return "";
  return "launch: threads must be a multiple of 32, got " + std::to_string(threads) + ".";
}

std::vector<std::size_t>& shared_sizes() {
  static std::vector<std::size_t> sizes;
  return sizes;
}

// One allocation a variable, so that AddressSanitizer sees the end of each.
class SharedMemory {
 public:
  SharedMemory() {
    for (std::size_t bytes : shared_sizes()) variables.push_back(::operator new(bytes, ALIGNMENT));
    forget();
  }
  ~SharedMemory() {
    for (void* variable : variables) ::operator delete(variable, ALIGNMENT);
  }
  SharedMemory(const SharedMemory&) = delete;

  // A block finds leftovers there, on a GPU too: a pattern no test would take for a result.
  void forget() {
    for (unsigned slot = 0; slot < variables.size(); slot++) std::memset(variables[slot], 0xCD, shared_sizes()[slot]);
  }
  void* operator[](unsigned slot) const { return variables[slot]; }

 private:
  static constexpr std::align_val_t ALIGNMENT{128};
  std::vector<void*> variables;
};

}  // namespace

unsigned new_shared_slot(std::size_t bytes) {
  shared_sizes().push_back(bytes);
  return unsigned(shared_sizes().size() - 1);
}

}  // namespace emulator
