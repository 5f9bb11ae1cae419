// The twin of kernels/gpu/grid.h: launches run one after the other, so nothing is left to wait for, but what was done before
// the wait is looked at.
#pragma once

#include <gpu/types.h>

namespace gpu {

GPU_DEVICE void grid_dependency_wait() { emu::grid_dependency_wait(); }
GPU_DEVICE void grid_dependency_launch() {}

}  // namespace gpu
