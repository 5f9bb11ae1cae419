// Arithmetic. nvcc declares global functions of the same names, so kernels write `gpu::`.
#pragma once

#include <gpu/types.h>

namespace gpu {

/// a·b + c, rounded once.
GPU_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }

/// Within 2 units in the last place, unlike `tanh.approx`.
GPU_DEVICE float tanh(float x) { return ::tanhf(x); }

/// 2^x within 2 units in the last place, subnormal results included.
GPU_DEVICE float exp2(float x) { return ::exp2f(x); }

/// 1/√x within 2 units in the last place.
GPU_DEVICE float rsqrt(float x) { return ::rsqrtf(x); }

/// √x, correctly rounded.
GPU_DEVICE float sqrt(float x) { return __fsqrt_rn(x); }

/// √x, correctly rounded.
GPU_DEVICE double sqrt(double x) { return __dsqrt_rn(x); }

GPU_DEVICE float abs(float x) { return ::fabsf(x); }

/// The smaller; of a number and a NaN the number.
GPU_DEVICE float min(float a, float b) { return ::fminf(a, b); }

/// The larger; of a number and a NaN the number.
GPU_DEVICE float max(float a, float b) { return ::fmaxf(a, b); }

/// For the integer types.
template <class T>
GPU_DEVICE T min(T a, T b) {
  return b < a ? b : a;
}

/// For the integer types.
template <class T>
GPU_DEVICE T max(T a, T b) {
  return a < b ? b : a;
}

/// The upper 32 bits of the 64-bit product.
GPU_DEVICE u32 multiply_high(u32 a, u32 b) { return __umulhi(a, b); }

}  // namespace gpu
