// The arithmetic of the matrix instructions (mma.sync and wgmma).
#pragma once

#include <cstdint>

namespace emu {

/// c += a·b: c [m, n], a [m, k], b [k, n], all row-major; each element adds its products in the order of k. Products of
/// 16-bit factors are exact in f32, so each step rounds once.
void multiply_add(float* c, const float* a, const float* b, int m, int n, int k);

/// An f16 or bf16 value as f32.
float widen(uint16_t bits, bool is_bf16);

}  // namespace emu
