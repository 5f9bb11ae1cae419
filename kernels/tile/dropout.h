// Dropout of an adapter's input. The mask is computed wherever it is needed, again in every pass, and never stored.
//
// One Philox counter gives the random bits of eight values of a row: in a block of 32 columns, columns 8q + 2p and 8q + 2p +
// 1 for q = 0 to 3. These are the values that a lane with lane % 4 = p holds in fragments and accumulators of mma.sync. Each
// value gets 16 bits, and is dropped if they are less than the threshold. src/dropout.rs makes the same mask.
//
// Cost: about 85 instructions for eight values. Kept values are not multiplied by 1/(1 - p) here; the sums of their products
// are, later.
#pragma once

#include <abi.h>
#include <gpu/memory.h>
#include <gpu/warp.h>
#include <tile/philox.h>
#include <tile/staged.h>

namespace tile {

using namespace gpu;

/// The random bits of eight values. Word q belongs to columns 32·block + 8q + 2·pair (lower half) and the next (upper half).
GPU_DEVICE void dropout_words(const LoraDropout& dropout, u32 row, u32 block, u32 pair, u32 (&words)[4]) {
  u32 offset = dropout.offset;
  if (dropout.step != nullptr) offset += load_input(dropout.step);
  words[0] = 4 * block + pair;
  words[1] = row;
  words[2] = dropout.layer;
  words[3] = offset;
  philox(words, dropout.seed_low, dropout.seed_high);
}

/// Which of these eight values are kept, one bit each: bits 2q and 2q + 1 belong to word q.
GPU_DEVICE u32 kept_of_eight(const LoraDropout& dropout, u32 row, u32 block, u32 pair) {
  u32 words[4], kept = 0;
  dropout_words(dropout, row, block, pair, words);
#pragma unroll
  for (u32 q = 0; q < 4; q++) {
    if ((words[q] & 0xFFFF) >= dropout.threshold) kept |= 1u << (2 * q);
    if (words[q] >> 16 >= dropout.threshold) kept |= 2u << (2 * q);
  }
  return kept;
}

/// Which of the 32 values of a row's block are kept, one bit each. Four neighbouring lanes call it for the same block; each
/// computes the eight values of one counter.
GPU_DEVICE u32 kept_of_block(const LoraDropout& dropout, u32 row, u32 block) {
  const u32 pair = lane_id() % 4, eight = kept_of_eight(dropout, row, block, pair);
  u32 kept = 0;
#pragma unroll
  for (u32 q = 0; q < 4; q++) kept |= (eight >> (2 * q) & 3) << (8 * q + 2 * pair);
  kept |= shuffle_xor(kept, 1);
  return kept | shuffle_xor(kept, 2);
}

/// Zeros the dropped values of a tile in shared memory: `rows` rows of x from `first_row` on, columns `first_column` to
/// `first_column` + DEPTH. `threads` threads call it, of which this is number `thread`; a barrier must come before and
/// after.
template <class E, u32 DEPTH>
GPU_DEVICE void drop_out(const LoraDropout& dropout, Chunk* tile, u32 rows, u32 first_row, u32 first_column, u32 thread,
                         u32 threads) {
  static_assert(DEPTH == 16 || DEPTH % 32 == 0, "half a block, or whole ones");
  constexpr u32 blocks = (DEPTH + 31) / 32, quarters = DEPTH == 16 ? 2 : 4, chunks = DEPTH / chunk_elements<E>;
#pragma unroll 1
  for (u32 i = thread; i < rows * blocks * 4; i += threads) {
    const u32 row = i / (blocks * 4), block = i / 4 % blocks, pair = i % 4;
    u32 words[4];
    dropout_words(dropout, first_row + row, first_column / 32 + block, pair, words);
    const bool upper = DEPTH == 16 && first_column % 32 != 0;
#pragma unroll
    for (u32 q = 0; q < quarters; q++) {
      const u32 word = upper ? words[(q + 2) % 4] : words[q], column = 32 * block + 8 * q + 2 * pair;
      const bool keeps_first = (word & 0xFFFF) >= dropout.threshold, keeps_second = word >> 16 >= dropout.threshold;
      u32* place = tile[swizzled<chunks>(row, column / chunk_elements<E>)].word;
      if constexpr (same_type<E, float>) {
        if (!keeps_first) place[column % 4] = 0;
        if (!keeps_second) place[column % 4 + 1] = 0;
      } else {
        place[pair] &= (keeps_first ? 0x0000FFFFu : 0) | (keeps_second ? 0xFFFF0000u : 0);
      }
    }
  }
}

}  // namespace tile
