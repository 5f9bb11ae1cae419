// lora_decode with W0 [out, in] on CUDA cores: 1 to 4 tokens (8 in f32), or any number where rows are not aligned.
//
// Who owns what. `row_threads` threads share a row of W0, 16 bytes each; if that does not cover K, they take K in panels. A
// thread keeps its part of x for a panel in registers as f32 and multiplies it with every row of the tile, so the main loop
// reads only W0, with ROWS chunks in flight per thread. The other threads of the CTA take other rows. A warp reduces ROWS x
// TOKENS sums at once (tile/reduce.h) and adds them to its own partial sums in shared memory.
//
// Bytes in flight: 512 threads x ROWS x 16 B, 64 KiB per CTA at one token.
// Tried on paper and dropped: one warp per row with x in shared memory. x would be converted again for every row, and a few
// rows more or less per warp would unbalance the CTAs.
//
// sass: lora_decode_rows_*      has LDG.E.128   lacks HMMA
// sass: lora_decode_rows_*f16_t1   registers <= 64
// sass: lora_decode_rows_*      registers <= 128
#include <gpu/math.h>
#include <lora/decode.h>

namespace lora {

template <class E, u32 TOKENS, u32 ROWS, bool ALIGNED>
GPU_DEVICE void decode_rows(const LoraDecode& p) {
  constexpr u32 threads = LORA_DECODE_THREADS, elements = chunk_elements<E>;
  const u32 parts = p.row_threads / warp_size;
  DecodeTile<E, TOKENS, threads, ALIGNED> tile(p, parts);
  const u32 groups = threads / p.row_threads, group = threadIdx.x / p.row_threads;
  const u32 lane_in_row = threadIdx.x % p.row_threads, part = lane_in_row / warp_size;
  const u32 rows_per_group = (tile.columns + groups - 1) / groups;
  const u32 first_row = gpu::min(group * rows_per_group, tile.columns);
  const u32 end_row = gpu::min(first_row + rows_per_group, tile.columns);
  const E* x = static_cast<const E*>(p.x);
  const E* weight = static_cast<const E*>(p.weight) + u64(tile.first_column) * p.weight_stride;

  // Prefetches the first rows; they arrive while the launch ahead ends and T is computed.
  for (u32 r = first_row; r < gpu::min(first_row + ROWS, end_row); r++) {
    prefetch_l2(weight + u64(r) * p.weight_stride + gpu::min(lane_in_row * elements, p.depth - 1));
  }
  tile.low_rank_input();

  for (u32 panel = 0; panel < p.depth; panel += p.row_threads * elements) {
    const u32 k = panel + lane_in_row * elements;
    float input[TOKENS][elements];
#pragma unroll
    for (u32 m = 0; m < TOKENS; m++) {
      const u32 token = tile.first_token + m;
      tile::load_elements<E, ALIGNED>(x + u64(token) * p.x_stride, k, token < p.tokens ? p.depth : 0, input[m]);
    }
    for (u32 row = first_row; row < end_row; row += ROWS) {
      Chunk chunk[ROWS];
#pragma unroll
      for (u32 r = 0; r < ROWS; r++) {
        const u32 end = row + r < end_row ? p.depth : 0;
        chunk[r] = tile::load_weight<E, ALIGNED>(weight + u64(row + r) * p.weight_stride, k, end);
      }
      float sum[TOKENS * ROWS];
#pragma unroll
      for (u32 r = 0; r < ROWS; r++) {
        float factor[elements];
        unpack<E>(chunk[r], factor);
#pragma unroll
        for (u32 m = 0; m < TOKENS; m++) {
          float total = 0.0f;
#pragma unroll
          for (u32 i = 0; i < elements; i++) total = gpu::fma(factor[i], input[m][i], total);
          sum[m * ROWS + r] = total;
        }
      }
      tile::reduce_transposed<TOKENS * ROWS>(sum);
      const u32 index = tile::reduced_index<TOKENS * ROWS>(lane_id()), r = row + index % ROWS;
      if (tile::holds_reduced<TOKENS * ROWS>(lane_id()) && r < end_row) {
        float& place = tile.sum(part, index / ROWS, r);
        place = panel == 0 ? sum[0] : place + sum[0];
      }
    }
  }
  tile.finish();
}

}  // namespace lora

#define DECODE_ROWS(NAME, E, TOKENS, ROWS, ALIGNED, CTAS)                    \
  GPU_KERNEL(lora_decode_rows_##NAME, LoraDecode, LORA_DECODE_THREADS, CTAS) { \
    lora::decode_rows<E, TOKENS, ROWS, ALIGNED>(params);                     \
  }

DECODE_ROWS(f32_t1, float, 1, 8, true, 1)
DECODE_ROWS(f32_t2, float, 2, 4, true, 1)
DECODE_ROWS(f32_t4, float, 4, 4, true, 1)
DECODE_ROWS(f32_t8, float, 8, 4, true, 1)
DECODE_ROWS(f16_t1, gpu::f16, 1, 8, true, 2)
DECODE_ROWS(f16_t2, gpu::f16, 2, 8, true, 1)
DECODE_ROWS(f16_t4, gpu::f16, 4, 4, true, 1)
DECODE_ROWS(bf16_t1, gpu::bf16, 1, 8, true, 2)
DECODE_ROWS(bf16_t2, gpu::bf16, 2, 8, true, 1)
DECODE_ROWS(bf16_t4, gpu::bf16, 4, 4, true, 1)
DECODE_ROWS(f32_any, float, 1, 4, false, 1)
DECODE_ROWS(f16_any, gpu::f16, 1, 4, false, 1)
DECODE_ROWS(bf16_any, gpu::bf16, 1, 4, false, 1)
