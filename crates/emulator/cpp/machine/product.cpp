#pragma GCC optimize("O3")
#include "product.h"

#include <cstring>

namespace emu {

// Compiled for the widest vectors of the host. Multiplication and addition stay separate, so the result is the same on all
// hosts.
#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void multiply_add(float* __restrict c, const float* __restrict a, const float* __restrict b, int m, int n, int k) {
  for (int i = 0; i < m; i++) {
    for (int j = 0; j < k; j++) {
      const float factor = a[i * k + j];
      for (int l = 0; l < n; l++) c[i * n + l] += factor * b[j * n + l];
    }
  }
}

float widen(uint16_t bits, bool is_bf16) {
  uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  if (is_bf16) {
    memcpy(&value, &word, sizeof value);
    return value;
  }
  // An f16 in the fields of f32: the exponent is then 112 too small, for subnormals as well.
  uint32_t sign = word & 0x80000000, magnitude = bits & 0x7fff;
  word = magnitude << 13;
  memcpy(&value, &word, sizeof value);
  value *= 0x1p112f;
  if (magnitude >= 0x7c00) {
    word = 0x7f800000 | magnitude << 13;
  } else {
    memcpy(&word, &value, sizeof word);
  }
  word |= sign;
  memcpy(&value, &word, sizeof value);
  return value;
}

}  // namespace emu
