// The main loop of the kernels with cp.async: a ring of stages in shared memory, filled by copies ahead of the products that
// read it.
#pragma once

#include <gpu/block.h>
#include <gpu/copy_async.h>

namespace tile {

using namespace gpu;

/// For each step from 0 to `steps` - 1, `issue(step, stage)` starts the copies of its operands into a stage, STAGES - 1
/// steps ahead of `multiply(step, stage)`. All threads of the CTA call it. On return no thread uses the ring any more. There
/// is one barrier per step: after it all threads see the copies of this step, and all have read the stage that is filled
/// next.
template <u32 STAGES, class Issue, class Multiply>
GPU_DEVICE void through_ring(u32 steps, Issue&& issue, Multiply&& multiply) {
#pragma unroll 1
  for (u32 s = 0; s < STAGES - 1; s++) {
    if (s < steps) issue(s, s);
    copy_async_commit();
  }
  u32 full = 0, free = STAGES - 1;
#pragma unroll 1
  for (u32 step = 0; step < steps; step++) {
    copy_async_wait<STAGES - 2>();
    sync_block();
    if (step + STAGES - 1 < steps) issue(step + STAGES - 1, free);
    copy_async_commit();  // an empty group too, so that the wait counts steps
    multiply(step, full);
    full = full + 1 == STAGES ? 0 : full + 1;
    free = free + 1 == STAGES ? 0 : free + 1;
  }
  sync_block();
}

}  // namespace tile
