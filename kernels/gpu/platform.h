// Qualifiers, indices, and the form of a kernel, for nvcc and NVRTC.
#pragma once

#define GPU_DEVICE __device__ __forceinline__

// A kernel takes one parameter struct by value (kernels/abi.h) and is launched by its name.
//   MAX_THREADS  threads of a CTA at most
//   MIN_CTAS     CTAs an SM must be able to hold: with MAX_THREADS the register ceiling
#define GPU_KERNEL(NAME, PARAMS, MAX_THREADS, MIN_CTAS) \
  extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_CTAS) NAME(const __grid_constant__ PARAMS params)

// The architecture of the target, for the headers of this folder only. nvcc's host pass parses kernels too but emits none,
// so there every function is declared.
#ifdef __CUDA_ARCH__
#define GPU_TARGET __CUDA_ARCH__
#else
#define GPU_TARGET 99999
#endif

// wgmma and setmaxnreg exist on sm_90a alone, not on its successors.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define GPU_TARGET_IS_90A 1
#else
#define GPU_TARGET_IS_90A 0
#endif
