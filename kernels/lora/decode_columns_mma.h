// lora_decode with W0 [in, out], GPT-2's layout, for up to 16 tokens with MMA.
//
// Who owns what. A CTA owns 64 output columns. A warp takes 32 rows of W0 at a time: a lane reads 16 bytes (8 columns) of 8
// rows, so one load instruction of the warp reads 128 contiguous bytes of 4 rows. The right operand needs pairs of K in one
// register, but memory has pairs of columns: byte_permute interleaves the words of two rows, and the 8 columns of a chunk go
// to 8 different MMAs. So column c of MMA j is column 8c + j of the tile. Several CTAs split K, because there are few tiles
// of 64 columns.
//
// Bytes in flight: 256 threads x 8 x 16 B, 32 KiB per CTA, two CTAs per SM.
#pragma once

#include <lora/decode_mma.h>

namespace lora {

/// Selectors of byte_permute for words of two rows, each with two columns: the pair of the lower column, and that of the
/// upper.
constexpr u32 lower_halves = 0x5410, upper_halves = 0x7632;

/// TILE is columns_mma of lora/tiles.h.
template <class E, class TILE>
GPU_DEVICE void decode_columns_mma(const LoraDecode& p) {
  constexpr u32 warps = TILE::threads / warp_size, columns = TILE::columns / 8;
  static_assert(TILE::columns == 64 && TILE::chunks == 8, "a lane has 8 columns of 8 rows");
  const u32 parts = p.row_threads / warp_size, g = lane_id() / 4, q = lane_id() % 4;
  DecodeTile<E, TILE> tile(p, parts);
  const u32 column = tile.first_column + columns * g;
  const E* weight = static_cast<const E*>(p.weight);
  const u32 begin = blockIdx.y * p.split_depth, end = gpu::min(begin + p.split_depth, p.depth);
  const u32 first = begin + warp_id() * mma_depth;

  if (column < p.columns) {
    for (u32 k = first + 8 * q; k < gpu::min(first + 8 * q + 8, end); k++) {
      prefetch_l2(weight + u64(k) * p.weight_stride + column);
    }
  }
  tile.low_rank_input();

  float sum[columns][4] = {};
  for (u32 k = first; k < end; k += warps * mma_depth) {
    Chunk row[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
      const u32 at = k + 8 * q + i, row_end = at < end ? p.columns : 0;
      row[i] = tile::load_weight<E, true>(weight + u64(at) * p.weight_stride, column, row_end);
    }
    MmaInput<E> input;
    input.load(p, k + 8 * q, end);
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
      const Chunk* four = row + 4 * half;
#pragma unroll
      for (u32 j = 0; j < columns; j++) {
        const u32 selector = j % 2 == 0 ? lower_halves : upper_halves;
        const u32 first_pair = byte_permute(four[0].word[j / 2], four[1].word[j / 2], selector);
        const u32 second_pair = byte_permute(four[2].word[j / 2], four[3].word[j / 2], selector);
        input.multiply(half, first_pair, second_pair, sum[j]);
      }
    }
  }

  in_turns<warps>(parts, [&](u32 part, bool is_first) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      float* place = &tile.sum(part, g + 8 * (i / 2), columns * (2 * q + i % 2));
#pragma unroll
      for (u32 j = 0; j < columns; j += 4) {
        Chunk* four = reinterpret_cast<Chunk*>(place + j);
        Chunk total = is_first ? tile::zero_chunk : load_shared(four);
#pragma unroll
        for (u32 e = 0; e < 4; e++) total.word[e] = bits(from_bits(total.word[e]) + sum[j + e][i]);
        store_shared(four, total);
      }
    }
  });
  tile.finish();
}

}  // namespace lora
