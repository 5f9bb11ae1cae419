// Host version of kernels/gpu/math.h.
#pragma once

#include <cmath>

#include <gpu/types.h>

namespace gpu {

GPU_DEVICE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
GPU_DEVICE float tanh(float x) { return __builtin_tanhf(x); }
GPU_DEVICE float exp2(float x) { return __builtin_exp2f(x); }
GPU_DEVICE float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
GPU_DEVICE float sqrt(float x) { return __builtin_sqrtf(x); }
GPU_DEVICE double sqrt(double x) { return __builtin_sqrt(x); }
GPU_DEVICE float abs(float x) { return __builtin_fabsf(x); }

// As the hardware does: of a number and a NaN, the number.
GPU_DEVICE float min(float a, float b) { return __builtin_fminf(a, b); }
GPU_DEVICE float max(float a, float b) { return __builtin_fmaxf(a, b); }

template <class T>
GPU_DEVICE T min(T a, T b) {
  return a < b ? a : b;
}

template <class T>
GPU_DEVICE T max(T a, T b) {
  return a < b ? b : a;
}

GPU_DEVICE u32 multiply_high(u32 a, u32 b) { return u32(u64(a) * b >> 32); }

}  // namespace gpu
