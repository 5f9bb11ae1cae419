// Barriers of a CTA. What its threads wrote before a barrier is visible to its threads after it.
#pragma once

#include <gpu/types.h>

namespace gpu {

/// A barrier of all threads of the CTA that have not exited.
GPU_DEVICE void sync_block() { __syncthreads(); }

/// `sync_block` that also returns whether the condition holds for any thread.
GPU_DEVICE bool sync_block_or(bool condition) { return __syncthreads_or(condition) != 0; }

/// Waits at barrier `id` (1 to 15; `sync_block` is 0) until `threads` threads, a multiple of 32, have arrived.
GPU_DEVICE void sync_named(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

/// Arrives at barrier `id` without waiting.
GPU_DEVICE void arrive_named(u32 id, u32 threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace gpu
