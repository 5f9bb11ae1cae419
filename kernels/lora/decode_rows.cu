// lora_decode with W0 [out, in] on CUDA cores: 1 to 4 tokens a CTA (8 in f32), more in groups of so many; or any number where rows
// are not aligned.
//
// Who owns what. `row_threads` threads share a row of W0, 16 bytes each; if that does not cover K, they take K in several
// panels. A thread keeps its part of x for a panel in registers as f32 and multiplies it with every row of the tile, so the
// main loop reads only W0, with `rows_in_flight` chunks in flight per thread. The other threads of the CTA take other rows.
// A warp reduces rows_in_flight x tokens sums at once (tile/reduce.h) and adds them to its own partial sums in shared
// memory.
//
// Bytes in flight: 512 threads x `rows_in_flight` x 16 B, 64 KiB per CTA at one token (rows aligned).
// Tried on paper and dropped: one warp per row with x in shared memory. x would be converted again for every row, and a few
// rows more or less per warp would unbalance the CTAs.
//
// sass: lora_decode_rows_*      has LDG.E.128   lacks HMMA
// sass: lora_decode_rows_*f16_t1   registers <= 64
// sass: lora_decode_rows_*      registers <= 128
#include <gpu/math.h>
#include <lora/decode.h>

namespace lora {

/// TILE is one of the tiles rows_* of lora/tiles.h.
template <class E, class TILE>
GPU_DEVICE void decode_rows(const LoraDecode& p) {
  constexpr u32 tokens = TILE::tokens, threads = TILE::threads, elements = chunk_elements<E>;
  // Rows of which a thread has a chunk each in flight.
  constexpr u32 rows_in_flight = TILE::chunks;
  const u32 parts = p.row_threads / warp_size;
  DecodeTile<E, TILE> tile(p, parts);
  const u32 groups = threads / p.row_threads, group = threadIdx.x / p.row_threads;
  const u32 lane_in_row = threadIdx.x % p.row_threads, part = lane_in_row / warp_size;
  // A row of W0 is a column of y.
  const u32 rows_per_group = (tile.columns + groups - 1) / groups;
  const u32 first_row = gpu::min(group * rows_per_group, tile.columns);
  const u32 end_row = gpu::min(first_row + rows_per_group, tile.columns);
  const E* x = static_cast<const E*>(p.x);
  const E* weight = static_cast<const E*>(p.weight) + u64(tile.first_column) * p.weight_stride;

  // Prefetches the first rows; they arrive while the launch ahead ends and T is computed.
  for (u32 r = first_row; r < gpu::min(first_row + rows_in_flight, end_row); r++) {
    prefetch_l2(weight + u64(r) * p.weight_stride + gpu::min(lane_in_row * elements, p.depth - 1));
  }
  tile.low_rank_input();

  for (u32 panel = 0; panel < p.depth; panel += p.row_threads * elements) {
    const u32 k = panel + lane_in_row * elements;
    float input[tokens][elements];
#pragma unroll
    for (u32 m = 0; m < tokens; m++) {
      const u32 token = tile.first_token + m;
      tile::load_elements<E, TILE::aligned, tile::Source::input>(x + u64(token) * p.x_stride, k, token < p.tokens ? p.depth : 0, input[m]);
    }
    for (u32 row = first_row; row < end_row; row += rows_in_flight) {
      Chunk chunk[rows_in_flight];
#pragma unroll
      for (u32 r = 0; r < rows_in_flight; r++) {
        const u32 end = row + r < end_row ? p.depth : 0;
        chunk[r] = tile::load_weight<E, TILE::aligned>(weight + u64(row + r) * p.weight_stride, k, end);
      }
      float sum[tokens * rows_in_flight];
#pragma unroll
      for (u32 r = 0; r < rows_in_flight; r++) {
        float factor[elements];
        unpack<E>(chunk[r], factor);
#pragma unroll
        for (u32 m = 0; m < tokens; m++) {
          float total = 0.0f;
#pragma unroll
          for (u32 i = 0; i < elements; i++) total = gpu::fma(factor[i], input[m][i], total);
          sum[m * rows_in_flight + r] = total;
        }
      }
      tile::reduce_transposed<tokens * rows_in_flight>(sum);
      const u32 index = tile::reduced_index<tokens * rows_in_flight>(lane_id()), r = row + index % rows_in_flight;
      if (tile::holds_reduced<tokens * rows_in_flight>(lane_id()) && r < end_row) {
        float& place = tile.sum(part, index / rows_in_flight, r);
        place = panel == 0 ? sum[0] : place + sum[0];
      }
    }
  }
  tile.finish();
}

}  // namespace lora

DECODE(lora_decode_rows_f32_t1, decode_rows, f32, rows_f32_t1)
DECODE(lora_decode_rows_f32_t2, decode_rows, f32, rows_f32_t2)
DECODE(lora_decode_rows_f32_t4, decode_rows, f32, rows_f32_t4)
DECODE(lora_decode_rows_f32_t8, decode_rows, f32, rows_f32_t8)
DECODE(lora_decode_rows_f16_t1, decode_rows, f16, rows_16bit_t1)
DECODE(lora_decode_rows_f16_t2, decode_rows, f16, rows_16bit_t2)
DECODE(lora_decode_rows_f16_t4, decode_rows, f16, rows_16bit_t4)
DECODE(lora_decode_rows_bf16_t1, decode_rows, bf16, rows_16bit_t1)
DECODE(lora_decode_rows_bf16_t2, decode_rows, bf16, rows_16bit_t2)
DECODE(lora_decode_rows_bf16_t4, decode_rows, bf16, rows_16bit_t4)
DECODE(lora_decode_rows_f32_any, decode_rows, f32, rows_f32_any)
DECODE(lora_decode_rows_f16_any, decode_rows, f16, rows_16bit_any)
DECODE(lora_decode_rows_bf16_any, decode_rows, bf16, rows_16bit_any)
