// Host version of kernels/gpu/grid.h. Launches run one after the other, so there is nothing to wait for; the wait
// checks what the thread accessed before it.
#pragma once

#include <gpu/types.h>

namespace gpu {

GPU_DEVICE void grid_dependency_wait() { emu::grid_dependency_wait(); }
GPU_DEVICE void grid_dependency_launch() {}

}  // namespace gpu
