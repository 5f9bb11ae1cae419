// Host version of kernels/gpu/block.h.
#pragma once

#include <gpu/types.h>

namespace gpu {

GPU_DEVICE void sync_block() { emu::sync_block(); }
GPU_DEVICE bool sync_block_or(bool vote) { return emu::sync_block_or(vote); }
GPU_DEVICE void sync_named(u32 id, u32 threads) { emu::named_barrier(id, threads, true); }
GPU_DEVICE void arrive_named(u32 id, u32 threads) { emu::named_barrier(id, threads, false); }

}  // namespace gpu
