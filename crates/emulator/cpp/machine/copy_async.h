// cp.async: copies from global to shared memory. The issuing thread waits for them group by group.
#pragma once

#include <cstdint>

namespace emu {

struct Thread;

/// Copies to `width` bytes of shared memory: the first `bytes` come from global memory, the others become zero.
void copy_async(uint32_t to, const void* from, uint32_t width, uint32_t bytes);
void copy_async_commit();
void copy_async_wait(uint32_t groups);

void check_copies_at_exit(const Thread& thread);

}  // namespace emu
