// cp.async: copies from global to shared memory that land, group by group, at the issuing thread's waits.
#pragma once

#include <cstdint>

namespace emu {

struct Thread;

/// `width` bytes of shared memory, of which the first `bytes` come from global memory and the others are zero.
void copy_async(uint32_t to, const void* from, uint32_t width, uint32_t bytes);
void copy_async_commit();
void copy_async_wait(uint32_t groups);

void check_copies_at_exit(const Thread& thread);

}  // namespace emu
