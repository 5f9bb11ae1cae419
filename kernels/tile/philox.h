// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): random words from a counter and a key,
// with no state to keep.
#pragma once

#include <gpu/math.h>

namespace tile {

using namespace gpu;

/// Replaces a counter by its 128 random bits.
GPU_DEVICE void philox(u32 (&counter)[4], u32 key_low, u32 key_high) {
  // Unrolled by five only: otherwise the compiler keeps all twenty keys in registers, and spills where accumulators fill
  // them.
#pragma unroll 5
  for (u32 round = 0; round < 10; round++) {
    const u32 high_0 = multiply_high(0xD2511F53u, counter[0]), low_0 = 0xD2511F53u * counter[0];
    const u32 high_2 = multiply_high(0xCD9E8D57u, counter[2]), low_2 = 0xCD9E8D57u * counter[2];
    counter[0] = high_2 ^ counter[1] ^ key_low;
    counter[1] = low_2;
    counter[2] = high_0 ^ counter[3] ^ key_high;
    counter[3] = low_0;
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
}

}  // namespace tile
