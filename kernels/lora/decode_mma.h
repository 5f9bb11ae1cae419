// What the two kernels on matrix instructions share: x as the left operand of mma.m16n8k16, and the way of a warp's
// sums into the tile.
//
// Tokens are the 16 rows of the instruction, the absent ones zero. The order of k is not memory's. Of every 32 values
// lane q = lane % 4 holds the 8 from 8q on, which are 16 contiguous bytes of x, and two instructions share them: the
// first takes values 0 to 3 of each lane, the second 4 to 7. As long as the weight's operand says the same, the sum is
// the same, and neither operand goes through shared memory.
#pragma once

#include <gpu/mma.h>
#include <lora/decode.h>

namespace lora {

constexpr u32 mma_tokens = 16;
/// Values of k that a warp takes at a time.
constexpr u32 mma_depth = 32;

template <class E, u32 THREADS>
using MmaTile = DecodeTile<E, mma_tokens, THREADS, true, 4>;

/// x of all tokens for the 8 values of k from `k` on: the tokens g = lane / 4 and g + 8.
template <class E>
struct MmaInput {
  Chunk low, high;

  GPU_DEVICE void load(const LoraDecode& p, u32 k, u32 end) {
    const E* x = static_cast<const E*>(p.x);
    const u32 g = lane_id() / 4;
    low = high = tile::zero_chunk;
    if (g < p.tokens && k < end) low = load_constant(reinterpret_cast<const Chunk*>(x + u64(g) * p.x_stride + k));
    if (g + 8 < p.tokens && k < end) {
      high = load_constant(reinterpret_cast<const Chunk*>(x + u64(g + 8) * p.x_stride + k));
    }
  }

  /// sum += x·w for the first or second half of every lane's values.
  GPU_DEVICE void multiply(u32 half, u32 first_pair, u32 second_pair, float (&sum)[4]) const {
    const u32 a[4] = {low.word[2 * half], high.word[2 * half], low.word[2 * half + 1], high.word[2 * half + 1]};
    const u32 b[2] = {first_pair, second_pair};
    mma_m16n8k16<E>(sum, a, b);
  }
};

/// Calls leave(part, is_first) in each warp, as many warps at a time as the tile has parts; where it is not the first
/// that comes to its part, a warp adds to what is there.
template <u32 WARPS, class F>
GPU_DEVICE void in_turns(u32 parts, F&& leave) {
  for (u32 first = 0; first < WARPS; first += parts) {
    if (first != 0) sync_block();
    if (warp_id() / parts == first / parts) leave(warp_id() % parts, first == 0);
  }
}

}  // namespace lora
