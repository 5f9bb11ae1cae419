// lora_decode with W0 [in, out], GPT-2's layout, on CUDA cores: 1 to 4 tokens (8 in f32), or any number where rows are
// not aligned.
//
// Who owns what. A CTA owns a narrow tile of columns, which of each row of W0 is one contiguous run. `row_threads`
// neighbouring lanes read the run of one row, 16 bytes each; the other threads of the CTA read the run of other rows. A
// thread takes `unroll` consecutive rows, so its values of x are whole chunks too. It sums its own columns over its rows;
// after the main loop the sums are added once, over lanes, then over warps. Narrow tiles keep every SM busy without split-K:
// a run of 64 bytes is two whole sectors.
//
// Bytes in flight: 512 threads x `unroll` x 16 B.
//
// sass: lora_decode_columns_*   registers <= 128   has LDG.E.128   lacks HMMA
#include <gpu/math.h>
#include <lora/decode.h>

namespace lora {

/// TILE is one of the tiles columns_* of lora/tiles.h.
template <class E, class TILE>
GPU_DEVICE void decode_columns(const LoraDecode& p) {
  constexpr u32 tokens = TILE::tokens, threads = TILE::threads, elements = chunk_elements<E>;
  // Rows of which a thread has a chunk each in flight.
  constexpr u32 unroll = TILE::chunks;
  static_assert(unroll % elements == 0, "x is read a chunk at a time");
  DecodeTile<E, TILE> tile(p, threads / warp_size);
  const u32 lane = threadIdx.x % p.row_threads, first = threadIdx.x / p.row_threads * unroll;
  const u32 column = tile.first_column + lane * elements;
  const E* x = static_cast<const E*>(p.x) + u64(tile.first_token) * p.x_stride;
  const E* weight = static_cast<const E*>(p.weight);
  const u32 present = gpu::min(tokens, p.tokens - tile.first_token);

  if (column < p.columns) {
    for (u32 k = first; k < gpu::min(first + unroll, p.depth); k++) prefetch_l2(weight + u64(k) * p.weight_stride + column);
  }
  tile.low_rank_input();

  float sum[tokens][elements] = {};
  for (u32 k = first; k < p.depth; k += threads / p.row_threads * unroll) {
    Chunk chunk[unroll];
#pragma unroll
    for (u32 i = 0; i < unroll; i++) {
      const u32 end = k + i < p.depth ? p.columns : 0;
      chunk[i] = tile::load_weight<E, TILE::aligned>(weight + u64(k + i) * p.weight_stride, column, end);
    }
    float input[tokens][unroll];
#pragma unroll
    for (u32 m = 0; m < tokens; m++) {
#pragma unroll
      for (u32 i = 0; i < unroll; i += elements) {
        float run[elements];
        tile::load_elements<E, TILE::aligned, tile::Source::input>(x + u64(m) * p.x_stride, k + i, m < present ? p.depth : 0, run);
#pragma unroll
        for (u32 e = 0; e < elements; e++) input[m][i + e] = run[e];
      }
    }
#pragma unroll
    for (u32 i = 0; i < unroll; i++) {
      float factor[elements];
      unpack<E>(chunk[i], factor);
#pragma unroll
      for (u32 m = 0; m < tokens; m++) {
#pragma unroll
        for (u32 e = 0; e < elements; e++) sum[m][e] = gpu::fma(factor[e], input[m][i], sum[m][e]);
      }
    }
  }
#pragma unroll
  for (u32 m = 0; m < tokens; m++) {
#pragma unroll
    for (u32 e = 0; e < elements; e++) {
      for (u32 offset = warp_size / 2; offset >= p.row_threads; offset /= 2) {
        sum[m][e] += shuffle_xor(sum[m][e], offset);
      }
      const u32 c = lane * elements + e;
      if (lane_id() < p.row_threads && c < tile.columns) tile.sum(warp_id(), m, c) = sum[m][e];
    }
  }
  tile.finish();
}

}  // namespace lora

DECODE(lora_decode_columns_f32_t1, decode_columns, f32, columns_f32_t1)
DECODE(lora_decode_columns_f32_t2, decode_columns, f32, columns_f32_t2)
DECODE(lora_decode_columns_f32_t4, decode_columns, f32, columns_f32_t4)
DECODE(lora_decode_columns_f32_t8, decode_columns, f32, columns_f32_t8)
DECODE(lora_decode_columns_f16_t1, decode_columns, f16, columns_16bit_t1)
DECODE(lora_decode_columns_f16_t2, decode_columns, f16, columns_16bit_t2)
DECODE(lora_decode_columns_f16_t4, decode_columns, f16, columns_16bit_t4)
DECODE(lora_decode_columns_bf16_t1, decode_columns, bf16, columns_16bit_t1)
DECODE(lora_decode_columns_bf16_t2, decode_columns, bf16, columns_16bit_t2)
DECODE(lora_decode_columns_bf16_t4, decode_columns, bf16, columns_16bit_t4)
DECODE(lora_decode_columns_f32_any, decode_columns, f32, columns_f32_any)
DECODE(lora_decode_columns_f16_any, decode_columns, f16, columns_16bit_any)
DECODE(lora_decode_columns_bf16_any, decode_columns, bf16, columns_16bit_any)
