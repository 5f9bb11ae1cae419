// Helpers of all test kernels: names, and typed pointers to the parameters.
#pragma once

#include <abi.h>
#include <gpu/types.h>

namespace test {

using namespace gpu;

template <class T>
GPU_DEVICE const T* in(const LoraTest& p, u32 i) {
  return static_cast<const T*>(p.in[i]);
}

template <class T>
GPU_DEVICE T* out(const LoraTest& p, u32 i) {
  return static_cast<T*>(p.out[i]);
}

/// This thread's number in the grid. CTAs have one warp unless a kernel says otherwise.
GPU_DEVICE u32 thread_of_grid() { return blockIdx.x * blockDim.x + threadIdx.x; }

}  // namespace test
