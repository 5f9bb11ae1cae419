// The twin of kernels/gpu/platform.h: a kernel is a function that is registered by its name, and an index is a call into the
// machine.
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
