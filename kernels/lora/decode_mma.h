// What the two decode kernels with MMA share: x as the left operand of mma.m16n8k16, and how a warp's sums are added to the
// tile.
//
// Tokens are the 16 rows of the instruction; rows without a token are zero. K is permuted: of every 32 values, lane q = lane
// % 4 holds values 8q to 8q + 7, which are 16 contiguous bytes of x, and two MMAs use them. The first takes values 0 to 3 of
// each lane, the second values 4 to 7. The weight's operand is permuted in the same way, so the sum is the same, and neither
// operand goes through shared memory.
//
// The shrink runs on CUDA cores here too, with four tokens per ticket: most of a ticket's cost is reading x, and smaller
// tickets spread it over more CTAs. In the main loop every CTA reads x of its K from L2. So where columns are few, CTAs
// split K rather than take narrower tiles.
#pragma once

#include <gpu/mma.h>
#include <lora/decode.h>

namespace lora {

/// Values of K that a warp multiplies at a time.
constexpr u32 mma_depth = 32;

/// 8 values of K of x, from `k` on, of the lane's tokens g = lane / 4 and g + 8.
template <class E>
struct MmaInput {
  Chunk low, high;

  GPU_DEVICE void load(const LoraDecode& p, u32 k, u32 end) {
    const E* x = static_cast<const E*>(p.x);
    const u32 g = lane_id() / 4;
    low = high = tile::zero_chunk;
    if (g < p.tokens && k < end) low = load_input(reinterpret_cast<const Chunk*>(x + u64(g) * p.x_stride + k));
    if (g + 8 < p.tokens && k < end) {
      high = load_input(reinterpret_cast<const Chunk*>(x + u64(g + 8) * p.x_stride + k));
    }
  }

  /// sum += x·w for the first or the second half of every lane's values.
  GPU_DEVICE void multiply(u32 half, u32 first_pair, u32 second_pair, float (&sum)[4]) const {
    const u32 a[4] = {low.word[2 * half], high.word[2 * half], low.word[2 * half + 1], high.word[2 * half + 1]};
    const u32 b[2] = {first_pair, second_pair};
    mma_m16n8k16<E>(sum, a, b);
  }
};

/// Calls store(part, is_first) in each warp, `parts` warps at a time. The first warp of a part stores its sums; the others
/// add theirs.
template <u32 WARPS, class F>
GPU_DEVICE void in_turns(u32 parts, F&& store) {
  for (u32 first = 0; first < WARPS; first += parts) {
    if (first != 0) sync_block();
    if (warp_id() / parts == first / parts) store(warp_id() % parts, first == 0);
  }
}

}  // namespace lora
