// The emulator's interface to Rust, in plain C.
#include <dlfcn.h>

#include <cstring>

#include "counters.h"
#include "machine.h"
#include "race.h"
#include "site.h"
#include "tensor_map.h"

using emu::Machine;

#define EXPORT extern "C" __attribute__((visibility("default")))

struct KernelDescription {
  const char* name;
  uint32_t params_bytes;
  uint32_t max_threads;
};

struct LaunchRequest {
  uint32_t kernel;
  uint32_t grid[3];
  uint32_t threads;
  uint32_t shared_bytes;
  uint32_t cluster;
  uint32_t params_bytes;
  const void* params;
};

EXPORT Machine* fused_lora_emulator_create() { return new Machine; }
EXPORT void fused_lora_emulator_destroy(Machine* machine) { delete machine; }
EXPORT void* fused_lora_emulator_allocate(Machine* machine, size_t bytes) { return machine->memory.allocate(bytes); }
EXPORT int fused_lora_emulator_release(Machine* machine, void* p) {
  return machine->memory.release(static_cast<char*>(p));
}
EXPORT int fused_lora_emulator_accessible(const Machine* machine, const void* p, size_t bytes) {
  return machine->memory.is_global(p) && machine->memory.accessible(p, bytes);
}

EXPORT uint32_t fused_lora_emulator_kernel_count() { return emu::kernel_count(); }
EXPORT KernelDescription fused_lora_emulator_kernel(uint32_t index) {
  const emu::KernelInfo& kernel = emu::kernel_at(index);
  return {kernel.name, kernel.params_bytes, kernel.max_threads};
}

/// The path of the library that the kernel is in.
EXPORT const char* fused_lora_emulator_library_of(uint32_t index) {
  Dl_info info{};
  dladdr(emu::kernel_at(index).name, &info);
  return info.dli_fname ? info.dli_fname : "";
}

/// A report gives a code address as `@0x<number>`. Returns the address within its library, and writes the path of the library
/// to `library`, truncated to `bytes` with the final zero; the path is empty if the number is unknown.
EXPORT uint64_t fused_lora_emulator_site(uint32_t number, char* library, size_t bytes) {
  uint64_t address = 0;
  std::string path = emu::site_library(number, address);
  strncpy(library, path.c_str(), bytes - 1);
  library[bytes - 1] = 0;
  return address;
}

/// Returns 0, or 1 with the reason in `report`. `map` has 128 bytes, at a multiple of 64.
EXPORT int fused_lora_emulator_encode_tensor_map(void* map, uint32_t element_bytes, uint32_t rank, uint64_t address,
                                                 const uint64_t* dims, const uint64_t* strides, const uint32_t* box,
                                                 uint32_t swizzle, char* report, size_t report_bytes) {
  const char* reason = emu::encode_tensor_map(*static_cast<emu::TensorMap*>(map), element_bytes, rank, address, dims,
                                              strides, box, swizzle);
  if (!reason) return 0;
  strncpy(report, reason, report_bytes - 1);
  report[report_bytes - 1] = 0;
  return 1;
}

/// Returns 0, or the number of a Fault with its text in `report`, truncated to `report_bytes` with the final zero.
EXPORT int fused_lora_emulator_launch(Machine* machine, const LaunchRequest* request, const emu::Config* config,
                                      emu::Counters* counters, char* report, size_t report_bytes) {
  emu::LaunchShape shape{{request->grid[0], request->grid[1], request->grid[2]},
                         request->threads,
                         request->shared_bytes,
                         request->cluster};
  // A copy, aligned like the GPU's constant bank, because kernels take addresses of tensor maps in it.
  alignas(128) char params[4096];
  memcpy(params, request->params, request->params_bytes);
  bool passed = machine->launch(emu::kernel_at(request->kernel), shape, params, *config);
  *counters = machine->counters->totals;
  if (passed) return 0;
  strncpy(report, machine->report.c_str(), report_bytes - 1);
  report[report_bytes - 1] = 0;
  return static_cast<int>(machine->fault);
}

/// The number of allocations that the last launch updated by atomic read-modify-writes (`how` 0), wrote in any way (1), read in
/// any way (2), or read through the non-coherent path (3). Writes the first `capacity` of them with the ranges.
EXPORT size_t fused_lora_emulator_accessed(const Machine* machine, uint32_t how, emu::AccessedRange* list, size_t capacity) {
  const emu::AccessedSet* sets[] = {&machine->updated, &machine->written, &machine->read, &machine->read_as_constant};
  const auto& ranges = sets[how]->ranges();
  size_t n = 0;
  for (const auto& [start, range] : ranges) {
    if (n == capacity) break;
    list[n++] = range;
  }
  return ranges.size();
}
