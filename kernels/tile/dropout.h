// Dropout of an adapter's input: the mask is made where it is needed, again in every pass, and never stored.
//
// One Philox counter stands for eight values of a row: of 32 neighbouring columns those that one lane holds as operand or
// as accumulator of the matrix instructions, 2p, 2p + 1 and the same 8, 16 and 24 further on (p: 0 to 3). Each gets 16 bits
// and is dropped if they are less than the threshold. src/dropout.rs makes the same mask.
//
// Cost: some 85 instructions for eight values. Values that are kept are not scaled here: their sums are.
#pragma once

#include <abi.h>
#include <gpu/memory.h>
#include <gpu/warp.h>
#include <tile/philox.h>
#include <tile/staged.h>

namespace tile {

using namespace gpu;

/// The random bits of eight values: word q is of the columns 32·block + 8q + 2·pair and the next, the lower half first.
GPU_DEVICE void dropout_words(const LoraDropout& dropout, u32 row, u32 block, u32 pair, u32 (&words)[4]) {
  u32 offset = dropout.offset;
  if (dropout.step != nullptr) offset += load_constant(dropout.step);
  words[0] = 4 * block + pair;
  words[1] = row;
  words[2] = dropout.layer;
  words[3] = offset;
  philox(words, dropout.seed_low, dropout.seed_high);
}

/// Which of these eight values are kept, a bit each: 2q and 2q + 1 are of word q.
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

/// Which of the 32 values of a row's block are kept, by four neighbouring lanes that ask for the same: each makes a
/// counter's eight.
GPU_DEVICE u32 kept_of_block(const LoraDropout& dropout, u32 row, u32 block) {
  const u32 pair = lane_id() % 4, eight = kept_of_eight(dropout, row, block, pair);
  u32 kept = 0;
#pragma unroll
  for (u32 q = 0; q < 4; q++) kept |= (eight >> (2 * q) & 3) << (8 * q + 2 * pair);
  kept |= shuffle_xor(kept, 1);
  return kept | shuffle_xor(kept, 2);
}

/// Zeros what is dropped of `rows` rows of a tile in shared memory, which holds the columns `first_column` to
/// `first_column` + DEPTH of x from row `first_row` on. Of `threads` threads this is number `thread`; a barrier comes before
/// and after.
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
