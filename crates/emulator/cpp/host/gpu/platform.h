// Host version of kernels/gpu/platform.h: a kernel is a function registered under its name, and threadIdx and the like
// are calls into the machine.
#pragma once

#include "machine/runtime.h"

#define GPU_DEVICE __attribute__((always_inline)) inline

#define threadIdx (emu::thread_index())
#define blockIdx (emu::block_index())
#define blockDim (emu::block_size())
#define gridDim (emu::grid_size())

#define GPU_KERNEL(NAME, PARAMS, MAX_THREADS, MIN_CTAS)                                                     \
  static void NAME(const PARAMS& params);                                                                   \
  static const emu::RegisterKernel register_##NAME(                                                         \
      #NAME, [](const void* params) { NAME(*static_cast<const PARAMS*>(params)); }, sizeof(PARAMS),         \
      MAX_THREADS);                                                                                         \
  static void NAME(const PARAMS& params)
