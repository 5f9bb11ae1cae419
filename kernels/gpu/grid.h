// Programmatic dependent launch: a kernel that starts before the one it depends on has ended. Below sm_90 a kernel
// starts after its predecessor's end, so there is nothing to do.
#pragma once

#include <gpu/types.h>

namespace gpu {

/// Waits until the kernels before this one have ended and what they wrote is visible.
GPU_DEVICE void grid_dependency_wait() {
#if GPU_TARGET >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel start once every CTA has called this or has ended. The next kernel still sees what is written later,
/// because it waits for this kernel's end.
GPU_DEVICE void grid_dependency_launch() {
#if GPU_TARGET >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace gpu
