// Moves registers between the warpgroups of a CTA (sm_90a): the producer warpgroup gives registers to the consumer
// warpgroups.
//
// All warps of a warpgroup make the call, and synchronise before the next one. The kernel must be compiled for a fixed
// number of registers, which its launch bounds give.
#pragma once

#include <gpu/types.h>

#if GPU_TARGET_IS_90A

namespace gpu {

/// Waits until the CTA has enough free registers for this warp to own `N` per thread.
template <int N>
GPU_DEVICE void increase_registers() {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0, "24 to 256 in steps of 8");
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

/// Gives up all but `N` registers per thread.
template <int N>
GPU_DEVICE void decrease_registers() {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0, "24 to 256 in steps of 8");
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

}  // namespace gpu

#endif
