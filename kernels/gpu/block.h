// Barriers of a CTA. Each makes what its threads wrote before visible to its threads after.
#pragma once

#include <gpu/types.h>

namespace gpu {

/// All threads that have not exited.
GPU_DEVICE void sync_block() { __syncthreads(); }

/// `sync_block` that also tells whether the condition holds for any thread.
GPU_DEVICE bool sync_block_or(bool condition) { return __syncthreads_or(condition) != 0; }

/// Waits at barrier `id` (1 to 15; `sync_block` is 0) until `threads` threads, a multiple of 32, have come to it.
GPU_DEVICE void sync_named(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

/// Counts at barrier `id` as having come, without waiting.
GPU_DEVICE void arrive_named(u32 id, u32 threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace gpu
