// Runs a kernel's blocks one after another, each thread of a block as a fiber: a stack of its own, left only at a
// meeting. What the threads do between two meetings is done in a known order, which a test may choose, and a meeting
// that can never take place is an error in place of a hang.
#include <sys/mman.h>
#include <unistd.h>

#include <mutex>
#include <stdexcept>

#include "blocks.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
static void __sanitizer_start_switch_fiber(void**, const void*, std::size_t) {}
static void __sanitizer_finish_switch_fiber(void*, const void**, std::size_t*) {}
static void __asan_unpoison_memory_region(const void*, std::size_t) {}
#endif

// Contexts: `prepare` makes one that begins in `entry` on its own stack, `swap_context` leaves one for another.
#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)  // swapcontext makes a system call for the signal mask
using Context = void*;  // the stack pointer; what the ABI asks a function to keep lies above it

extern "C" void emulator_swap(Context* from, const Context* to);
asm(R"(
  .text
  .local emulator_swap
emulator_swap:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov (%rsi), %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");
static void swap_context(Context& from, const Context& to) { emulator_swap(&from, &to); }

static void prepare(Context& context, char* stack, std::size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + bytes) - 8;  // 6 registers, where to go, and a null to return to
  std::fill(top, top + 8, nullptr);
  top[6] = reinterpret_cast<void*>(entry);
  context = top;
}
#else
#include <ucontext.h>
using Context = ucontext_t;
static void swap_context(Context& from, const Context& to) { swapcontext(&from, &to); }

static void prepare(Context& context, char* stack, std::size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  makecontext(&context, entry, 0);
}
#endif

Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

struct Strand {  // a context and its stack, as AddressSanitizer wants to hear of them
  Context context;
  const void* stack;
  std::size_t bytes;
  void* hidden = nullptr;  // AddressSanitizer's own, kept while this strand does not run
};

void change(Strand& from, Strand& to, bool for_good = false) {
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.hidden, to.stack, to.bytes);
  swap_context(from.context, to.context);
  __sanitizer_finish_switch_fiber(from.hidden, nullptr, nullptr);
}

enum class State { running, waiting, returned };

struct Fiber : Strand {
  State state;
  Meeting meeting;
  std::uint64_t answer;
};

Strand scheduler;
std::vector<Fiber> fibers;  // made at the first launch that needs them, kept for the next until `release`
SharedMemory* shared;
void (*body)(const void*);
const void* argument;

void enter() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.bytes);
  body(argument);
  Fiber& fiber = fibers[threadIdx.x];
  fiber.state = State::returned;
  change(fiber, scheduler, true);
  __builtin_unreachable();
}

char* new_stack(std::size_t bytes) {
  const std::size_t page = std::size_t(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, page + bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page, PROT_NONE);  // a fiber that runs out of stack stops here, not in its neighbour's
  return static_cast<char*>(memory) + page;
}

constexpr std::size_t STACK = 256 << 10;  // a kernel's frame is a few KiB, and some ten times that with redzones

void make_fibers(unsigned count) {
  while (fibers.size() < count) {
    Fiber& fiber = fibers.emplace_back();
    fiber.stack = new_stack(STACK);
    fiber.bytes = STACK;
  }
}

void drop_fibers() {
  const std::size_t page = std::size_t(sysconf(_SC_PAGESIZE));
  for (Fiber& fiber : fibers) munmap(static_cast<char*>(const_cast<void*>(fiber.stack)) - page, page + STACK);
  fibers.clear();
}

void restart(Fiber& fiber) {
  char* stack = static_cast<char*>(const_cast<void*>(fiber.stack));
  __asan_unpoison_memory_region(stack, fiber.bytes);  // a block given up leaves its frames' redzones there
  prepare(fiber.context, stack, fiber.bytes, enter);
  fiber.state = State::running;
}

std::string told(unsigned thread) {
  const Fiber& fiber = fibers[thread];
  const std::string name = "thread " + std::to_string(thread);
  if (fiber.state == State::returned) return name + " has returned";
  const std::string file = fiber.meeting.place.file_name();
  return name + " waits in " + fiber.meeting.call + " at " + file.substr(file.rfind('/') + 1) + ":" +
         std::to_string(fiber.meeting.place.line());
}

// Whom `thread` waits for: the lanes of its mask, returned or not, or all of the block that have not returned.
std::vector<unsigned> expected(unsigned thread) {
  const unsigned mask = fibers[thread].meeting.mask, warp = thread / WARP;
  std::vector<unsigned> threads;
  for (unsigned other = 0; other < blockDim.x; other++)
    if (mask ? other / WARP == warp && (mask >> other % WARP & 1) : fibers[other].state != State::returned)
      threads.push_back(other);
  return threads;
}

bool together(const Fiber& one, const Fiber& other) {
  return other.state == State::waiting && one.meeting.mask == other.meeting.mask &&
         one.meeting.place.line() == other.meeting.place.line() &&
         one.meeting.place.column() == other.meeting.place.column() &&
         std::strcmp(one.meeting.place.file_name(), other.meeting.place.file_name()) == 0;
}

std::uint64_t answer(unsigned thread, const std::vector<unsigned>& threads) {
  const Meeting& meeting = fibers[thread].meeting;
  if (meeting.mask == 0) {
    std::uint64_t any = 0;
    for (unsigned other : threads) any |= fibers[other].meeting.value;
    return any;
  }
  return fibers[thread / WARP * WARP + meeting.source].meeting.value;
}

void check_mask(unsigned thread) {
  const Meeting& meeting = fibers[thread].meeting;
  for (unsigned lane : {thread % WARP, meeting.source})
    if (meeting.mask && !(meeting.mask >> lane & 1))
      throw std::runtime_error(told(thread) + ", whose mask leaves out lane " + std::to_string(lane) + ".");
}

// Holds the meeting that `thread` waits for, if all that it waits for are there.
bool hold(unsigned thread) {
  check_mask(thread);
  const std::vector<unsigned> threads = expected(thread);
  for (unsigned other : threads)
    if (!together(fibers[thread], fibers[other])) return false;
  for (unsigned other : threads) fibers[other].answer = answer(other, threads);
  for (unsigned other : threads) fibers[other].state = State::running;
  return true;
}

// Everybody waits, and no meeting is complete: names the first thread that waits in vain, and whom it waits for.
[[noreturn]] void give_up() {
  for (unsigned thread = 0; thread < blockDim.x; thread++) {
    if (fibers[thread].state != State::waiting) continue;
    for (unsigned other : expected(thread))
      if (!together(fibers[thread], fibers[other]))
        throw std::runtime_error(told(thread) + ", and " + told(other) + ".");
  }
  __builtin_unreachable();
}

void run_block(const std::vector<unsigned>& turns) {
  shared->forget();
  for (unsigned thread : turns) restart(fibers[thread]);
  for (bool waiting = true; waiting;) {
    for (unsigned thread : turns) {
      threadIdx.x = thread;
      if (fibers[thread].state == State::running) change(scheduler, fibers[thread]);
    }
    waiting = false;
    bool held = false;
    for (unsigned thread : turns) {
      if (fibers[thread].state != State::waiting) continue;
      waiting = true;
      held |= hold(thread);
    }
    if (waiting && !held) give_up();
  }
}

}  // namespace

void* shared_memory(unsigned slot) { return (*shared)[slot]; }

std::uint64_t meet(const Meeting& meeting) {
  Fiber& fiber = fibers[threadIdx.x];
  fiber.meeting = meeting;
  fiber.state = State::waiting;
  change(fiber, scheduler);
  return fiber.answer;
}

const char* run(unsigned blocks, unsigned threads, unsigned order, void (*body_)(const void*), const void* argument_) {
  static std::mutex one_launch_at_a_time;
  static std::string problem;
  const std::lock_guard guard(one_launch_at_a_time);
  problem = refusal(threads);
  if (!problem.empty()) return problem.c_str();
  SharedMemory memory;
  shared = &memory, body = body_, argument = argument_, gridDim.x = blocks, blockDim.x = threads;
  try {
    make_fibers(threads);
    const std::vector<unsigned> turns = arranged(threads, order);
    for (unsigned block : arranged(blocks, order)) {
      blockIdx.x = block;
      run_block(turns);
    }
  } catch (const std::exception& error) {
    problem = "block " + std::to_string(blockIdx.x) + ": " + error.what();
    return problem.c_str();
  }
  return nullptr;
}

}  // namespace emulator

void __threadfence() {}
unsigned atomicAdd(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at += value;
  return before;
}

// Gives the stacks back: each is two mappings, of which a process may have 65,530, and a test run has hundreds of kernels.
extern "C" void release() { emulator::drop_fibers(); }
