// One library: the kernel's text, and `launch`, which runs a kernel of it by its address.
#include "cuda_on_host.h"
#include "kernel.cuh"

extern "C" const unsigned launch_bytes;
const unsigned launch_bytes = sizeof(Launch);

extern "C" const char* launch(void (*kernel)(Launch), unsigned blocks, unsigned threads, const Launch* arguments,
                              unsigned order) {
  const auto body = [=] { kernel(*arguments); };
  const auto call = [](const void* body_) { (*static_cast<const decltype(body)*>(body_))(); };
  return emulator::run(blocks, threads, order, call, &body);
}
