// Runs a kernel with a std::thread for each CUDA thread and some blocks at a time, for ThreadSanitizer to watch. The
// sanitizer knows what a lock or an atomic orders, whatever the timing was, so a race is seen without having to happen.
// A divergent barrier hangs here; fibers.cpp is what reports it, so run there first.
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "blocks.h"

#ifdef __SANITIZE_THREAD__
extern "C" {
void AnnotateIgnoreSyncBegin(const char*, int);
void AnnotateIgnoreSyncEnd(const char*, int);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

thread_local constinit Index threadIdx, blockIdx;
Index blockDim, gridDim;

namespace emulator {
namespace {

// Blocks at a time. More of them would show more pairs of blocks to the sanitizer, and take longer.
constexpr unsigned TEAMS = 4;

// A barrier of its own memory alone: std::barrier parks every waiter of the process in one table of atomics, which to
// the sanitizer orders the blocks, and hides the races between them.
class Barrier {
 public:
  explicit Barrier(unsigned expected) : expected(expected) {}
  void wait() {
    std::unique_lock lock(mutex);
    const unsigned mine = phase;
    arrived++;
    if (!complete()) changed.wait(lock, [&] { return phase != mine; });
  }
  void leave() {
    const std::lock_guard lock(mutex);
    expected--;
    complete();
  }

 private:
  bool complete() {
    if (arrived < expected) return false;
    arrived = 0, phase++;
    changed.notify_all();
    return true;
  }
  std::mutex mutex;
  std::condition_variable changed;
  unsigned expected, arrived = 0, phase = 0;
};

struct Block {
  explicit Block(unsigned threads) : everyone(threads), values(threads) {
    for (unsigned warp = 0; warp < threads / WARP; warp++) warps.emplace_back(WARP);
  }
  Barrier& warp() { return *std::next(warps.begin(), threadIdx.x / WARP); }
  void leave() {
    values[threadIdx.x].store(0, std::memory_order_relaxed);
    warp().leave();
    everyone.leave();
  }
  SharedMemory shared;
  Barrier everyone;
  std::list<Barrier> warps;  // a barrier cannot be moved
  std::vector<std::atomic<std::uint64_t>> values;
};

struct Team {  // the threads that run one block after another
  explicit Team(unsigned threads) : between_blocks(threads) {}
  Barrier between_blocks;
  std::optional<Block> block;
  std::vector<std::thread> members;
};

thread_local constinit Block* block = nullptr;
thread_local constinit bool fenced = false;

// While one of these lives, what the thread does orders nothing in the sanitizer's eyes: a shuffle moves a register,
// and does not make the other lanes' writes visible.
struct Unseen {
#ifdef __SANITIZE_THREAD__
  explicit Unseen(bool wanted) : wanted(wanted) {
    if (!wanted) return;
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    if (!wanted) return;
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
  }
  const bool wanted;
#else
  explicit Unseen(bool) {}
#endif
};

std::uint64_t answer(const Meeting& meeting) {
  if (meeting.mask) return block->values[threadIdx.x / WARP * WARP + meeting.source].load(std::memory_order_relaxed);
  std::uint64_t any = 0;
  for (const auto& value : block->values) any |= value.load(std::memory_order_relaxed);
  return any;
}

}  // namespace

void* shared_memory(unsigned slot) { return block->shared[slot]; }

std::uint64_t meet(const Meeting& meeting) {
  if (meeting.mask && meeting.mask != ~0u) {
    std::fprintf(stderr, "%s: only whole warps can meet where CUDA threads are threads.\n", meeting.call);
    std::abort();
  }
  const Unseen unseen(!meeting.publishes);
  Barrier& barrier = meeting.mask ? block->warp() : block->everyone;
  block->values[threadIdx.x].store(meeting.value, std::memory_order_relaxed);
  barrier.wait();
  const std::uint64_t result = answer(meeting);
  barrier.wait();  // nobody brings the next value before all have read this one
  return result;
}

const char* run(unsigned blocks, unsigned threads, unsigned order, void (*body)(const void*), const void* argument) {
  static std::string problem;
  problem = refusal(threads);
  if (!problem.empty()) return problem.c_str();
  gridDim.x = blocks, blockDim.x = threads;
  const std::vector<unsigned> indices = arranged(blocks, order), places = arranged(threads, order);
  std::vector<std::unique_ptr<Team>> teams;
  for (unsigned first = 0; first < std::min(TEAMS, blocks); first++) {
    Team& team = *teams.emplace_back(std::make_unique<Team>(threads));
    for (unsigned thread : places)
      team.members.emplace_back([=, &team, &indices] {
        // A fixed share of the blocks: handing them out by a counter would order them.
        for (unsigned turn = first; turn < blocks; turn += TEAMS) {
          team.between_blocks.wait();
          if (thread == 0) team.block.emplace(threads);
          team.between_blocks.wait();
          block = &*team.block;
          fenced = false, threadIdx.x = thread, blockIdx.x = indices[turn];
          body(argument);
          block->leave();
        }
      });
  }
  for (const auto& team : teams)
    for (std::thread& member : team->members) member.join();
  return nullptr;
}

}  // namespace emulator

// The sanitizer does not model fences. What a fence does for a kernel is to let the next atomic of its thread publish
// the writes before it, so an atomic releases after a fence only; a ticket without its fence is then seen as a race.
void __threadfence() { emulator::fenced = true; }
unsigned atomicAdd(unsigned* at, unsigned value) {
  const bool release = std::exchange(emulator::fenced, false);
  return std::atomic_ref(*at).fetch_add(value, release ? std::memory_order_acq_rel : std::memory_order_acquire);
}

extern "C" void release() {}  // as in fibers.cpp; threads end with their launch
