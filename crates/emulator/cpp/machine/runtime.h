// The functions that the headers in host/gpu call. They are compiled without instrumentation in every build. Each checks its
// arguments, counts, informs the race detector, and then does what the instruction does.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fault.h"

namespace emu {

struct ThreadIndex {
  uint32_t x, y, z;
};
ThreadIndex thread_index();
ThreadIndex block_index();
ThreadIndex block_size();
ThreadIndex grid_size();
uint32_t lane();

enum class Cache : uint32_t { normal, once };

// --- memory ---
/// Accesses of global memory, 1 to 16 bytes, aligned to their size.
/// `constant`: through the non-coherent path.
void load_global(void* to, const void* from, uint32_t bytes, Cache cache, const char* name,
                 bool constant = false);
void store_global(void* to, const void* from, uint32_t bytes, const char* name);
void load_shared(void* to, const void* from, uint32_t bytes, const char* name);
void store_shared(void* to, const void* from, uint32_t bytes, const char* name);

enum class Order : uint32_t { relaxed, acquire, release, acquire_release };
enum class Update : uint32_t { add, max };
/// Strong accesses at gpu scope, of 4 or 8 bytes.
uint64_t load_strong(const void* from, uint32_t bytes, Order order, const char* name);
void store_strong(void* to, uint64_t value, uint32_t bytes, Order order, const char* name);
uint64_t update_strong(void* at, uint64_t operand, uint32_t bytes, Update update, Order order, const char* name);
void fence_gpu();

/// The wait for the preceding launch. Launches run one after the other, so it only checks that the thread has not accessed
/// memory that the preceding launch may write.
void grid_dependency_wait();

/// Takes the next `bytes` of the CTA's dynamic shared memory at a multiple of `alignment`.
void* take_shared(uint32_t bytes, uint32_t alignment);
/// This thread's next take_shared starts at the beginning of shared memory again.
void restart_shared();
/// The 32-bit address of a shared-memory pointer. The top byte is the CTA's rank in the cluster.
uint32_t shared_window(const void* p);
/// The pointer for a 32-bit shared-memory address. Faults unless all `bytes` are accessible.
void* shared_pointer(uint32_t address, uint32_t bytes, const char* name);
/// The same for an address that must lie in the CTA's own shared memory and be a multiple of `alignment`.
void* own_shared_pointer(uint32_t address, uint32_t bytes, uint32_t alignment, const char* name);

// --- threads ---
struct WarpInstruction;
void sync_block();
bool sync_block_or(bool vote);
void named_barrier(uint32_t id, uint32_t threads, bool wait);
void sync_warp(uint32_t members);
/// `source` is the lane whose value this lane gets; values have 4 or 8 bytes.
uint64_t shuffle(uint64_t value, uint32_t source, uint32_t members, const char* name);
uint32_t ballot(bool vote, uint32_t members, const char* name);

using KernelFunction = void (*)(const void* params);
/// Adds a kernel to those that can be launched.
struct RegisterKernel {
  RegisterKernel(const char* name, KernelFunction run, uint32_t params_bytes, uint32_t max_threads);
};

}  // namespace emu
