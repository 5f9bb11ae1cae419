// lora_decode with W0 [out, in] for up to 16 tokens with MMA.
//
// Who owns what. A CTA owns 8·mmas output columns, 8 rows of W0 per MMA, and keeps their sums in registers over all of its
// K, so it reads x once. Its 16 warps take K in turns, 32·steps values each: a warp reads 64·steps contiguous bytes of a
// row, 16 bytes per lane at a time, and uses them as the right operand without rearranging them. Where the layer has too few
// columns for all SMs, several CTAs split K.
//
// Bytes in flight: 512 threads x mmas·steps x 16 B, 64 KiB per CTA if mmas·steps = 8. x comes from L2: for 16 tokens it is
// 2 / mmas of the weight's bytes.
#pragma once

#include <lora/decode_mma.h>

namespace lora {

/// TILE is one of the tiles rows_mma_* of lora/tiles.h.
template <class E, class TILE>
GPU_DEVICE void decode_rows_mma(const LoraDecode& p) {
  // MMAs beside each other; steps of K whose chunks of W0 are in flight together.
  constexpr u32 mmas = TILE::columns / 8, steps = TILE::chunks / mmas;
  constexpr u32 warps = TILE::threads / warp_size, run = mma_depth * steps;
  const u32 parts = p.row_threads / warp_size, g = lane_id() / 4, q = lane_id() % 4;
  DecodeTile<E, TILE> tile(p, parts);
  const E* weight = static_cast<const E*>(p.weight) + u64(tile.first_column) * p.weight_stride;
  const u32 begin = blockIdx.y * p.split_depth, end = gpu::min(begin + p.split_depth, p.depth);
  const u32 first = begin + warp_id() * run;

  if (q == 0 && first < end) {
    // Prefetches the first rows; they arrive while the launch ahead ends and T is computed.
    for (u32 n = g; n < tile.columns; n += 8) prefetch_l2(weight + u64(n) * p.weight_stride + first);
  }
  tile.low_rank_input();

  float sum[mmas][4] = {};
  for (u32 k = first; k < end; k += warps * run) {
    Chunk chunk[steps][mmas];
    MmaInput<E> input[steps];
#pragma unroll
    for (u32 s = 0; s < steps; s++) {
#pragma unroll
      for (u32 n = 0; n < mmas; n++) {
        const u32 row = 8 * n + g, row_end = row < tile.columns ? end : 0;
        chunk[s][n] =
            tile::load_weight<E, true>(weight + u64(row) * p.weight_stride, k + mma_depth * s + 8 * q, row_end);
      }
    }
#pragma unroll
    for (u32 s = 0; s < steps; s++) input[s].load(p, k + mma_depth * s + 8 * q, end);
#pragma unroll
    for (u32 s = 0; s < steps; s++) {
#pragma unroll
      for (u32 n = 0; n < mmas; n++) {
        const Chunk& w = chunk[s][n];
        input[s].multiply(0, w.word[0], w.word[1], sum[n]);
        input[s].multiply(1, w.word[2], w.word[3], sum[n]);
      }
    }
  }

  in_turns<warps>(parts, [&](u32 part, bool is_first) {
#pragma unroll
    for (u32 n = 0; n < mmas; n++) {
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        float& place = tile.sum(part, g + 8 * (i / 2), 8 * n + 2 * q + i % 2);
        place = is_first ? sum[n][i] : place + sum[n][i];
      }
    }
  });
  tile.finish();
}

}  // namespace lora
