// The tiles that the kernels of a layer are compiled for: the one table of them. A kernel takes a line as its template
// argument; build.rs turns the same lines into the constants of src/plan/lora/tiles.rs, from which the plans choose.
//
// A y tile of forward, dx and bottleneck adapters:
//   rows, columns   of y that a CTA computes at a time
//   depth, stages   values of K in a stage of the ring; stages of the ring
//   warp            rows and columns whose sums a warp holds; on wgmma, a consumer warpgroup
//   threads, CTAs   threads of a CTA; CTAs an SM that the launch bounds ask registers for
//   sharing         CTAs of a cluster that each fetch an equal share of W0's part of a stage for all of them
//   fused rank      columns of T that are computed beside those of y (lora/forward_wgmma_fused.h)
//   aligned         whether all rows of x, W0 and A must start and end at multiples of 16 bytes
//
// A tile of a decode kernel, which takes all of K or a split of it:
//   tokens          that a CTA computes at a time
//   of a ticket     tokens that a ticket of T stands for
//   columns         of y; 0: the plan says how many
//   chunks          of 16 bytes of W0 that a thread has in flight
#pragma once

#include <gpu/types.h>

#define LORA_TILE(NAME, ROWS, COLUMNS, DEPTH, STAGES, WARP_ROWS, WARP_COLUMNS, THREADS, CTAS, SHARING, FUSED_RANK, ALIGNED) \
  struct NAME {                                                                                                      \
    static constexpr gpu::u32 rows = ROWS, columns = COLUMNS, depth = DEPTH, stages = STAGES;                        \
    static constexpr gpu::u32 warp_rows = WARP_ROWS, warp_columns = WARP_COLUMNS, threads = THREADS, ctas = CTAS;    \
    static constexpr gpu::u32 sharing = SHARING, fused_rank = FUSED_RANK;                                            \
    static constexpr bool aligned = ALIGNED;                                                                         \
  };

#define LORA_DECODE_TILE(NAME, TOKENS, TICKET_TOKENS, COLUMNS, CHUNKS, THREADS, CTAS, ALIGNED)                      \
  struct NAME {                                                                                                      \
    static constexpr gpu::u32 tokens = TOKENS, ticket_tokens = TICKET_TOKENS, columns = COLUMNS, chunks = CHUNKS;    \
    static constexpr gpu::u32 threads = THREADS, ctas = CTAS;                                                        \
    static constexpr bool aligned = ALIGNED;                                                                         \
  };

namespace lora {
namespace tiles {

// clang-format off
//        name              rows columns  depth stages    warp      threads CTAs  sharing  fused  aligned
LORA_TILE(mma_t128,          128,  128,    32,  3,      64,  32,     256,  2,     1,       0,     true)
LORA_TILE(mma_t64,            64,   64,    64,  3,      32,  32,     128,  3,     1,       0,     true)
LORA_TILE(mma_any,            64,   64,    64,  3,      32,  32,     128,  3,     1,       0,     false)
// f32 in TF32.
LORA_TILE(mma_tf32_t128,     128,  128,    16,  3,      32,  64,     256,  2,     1,       0,     true)
LORA_TILE(mma_tf32_t64,       64,   64,    32,  3,      32,  32,     128,  3,     1,       0,     true)
LORA_TILE(mma_tf32_any,       64,   64,    32,  3,      32,  32,     128,  3,     1,       0,     false)
// CUDA cores, f32, and 16-bit types where there is no MMA for them.
LORA_TILE(cores_f32_t128,    128,  128,    16,  3,      64,  32,     256,  1,     1,       0,     true)
LORA_TILE(cores_f32_t64,      64,   64,    16,  3,      32,  32,     128,  3,     1,       0,     true)
LORA_TILE(cores_f32_any,      64,   64,    16,  3,      32,  32,     128,  3,     1,       0,     false)
LORA_TILE(cores_16bit_t64,    64,   64,    32,  3,      32,  32,     128,  3,     1,       0,     true)
LORA_TILE(cores_16bit_any,    64,   64,    32,  3,      32,  32,     128,  3,     1,       0,     false)
// Many tokens: a CTA takes tile after tile.
LORA_TILE(wgmma_n256x2,      128,  256,    64,  4,      64, 256,     384,  1,     2,       0,     true)
LORA_TILE(wgmma_n256,        128,  256,    64,  4,      64, 256,     384,  1,     1,       0,     true)
LORA_TILE(wgmma_n128,        128,  128,    64,  6,      64, 128,     384,  1,     1,       0,     true)
// Few tokens: the CTAs of a cluster split K.
LORA_TILE(wgmma_m128n128,    128,  128,    64,  6,      64, 128,     384,  1,     1,       0,     true)
LORA_TILE(wgmma_m64n128,      64,  128,    64,  4,      64, 128,     256,  2,     1,       0,     true)
LORA_TILE(wgmma_m64n64,       64,   64,    64,  6,      64,  64,     256,  2,     1,       0,     true)
LORA_TILE(wgmma_m128n128r,   128,  128,    64,  6,      64, 128,     384,  1,     1,      32,     true)
LORA_TILE(wgmma_m64n128r,     64,  128,    64,  4,      64, 128,     256,  2,     1,      32,     true)
LORA_TILE(wgmma_m64n64r,      64,   64,    64,  5,      64,  64,     256,  2,     1,      32,     true)

//               name             tokens  of a ticket  columns  chunks  threads  CTAs  aligned
LORA_DECODE_TILE(rows_f32_t1,        1,       1,          0,       8,     512,     1,   true)
LORA_DECODE_TILE(rows_f32_t2,        2,       2,          0,       4,     512,     1,   true)
LORA_DECODE_TILE(rows_f32_t4,        4,       4,          0,       4,     512,     1,   true)
LORA_DECODE_TILE(rows_f32_t8,        8,       8,          0,       4,     512,     1,   true)
LORA_DECODE_TILE(rows_f32_any,       1,       1,          0,       4,     512,     1,   false)
LORA_DECODE_TILE(rows_16bit_t1,      1,       1,          0,       8,     512,     2,   true)
LORA_DECODE_TILE(rows_16bit_t2,      2,       2,          0,       8,     512,     1,   true)
LORA_DECODE_TILE(rows_16bit_t4,      4,       4,          0,       4,     512,     1,   true)
LORA_DECODE_TILE(rows_16bit_any,     1,       1,          0,       4,     512,     1,   false)
LORA_DECODE_TILE(columns_f32_t1,     1,       1,          0,       8,     512,     2,   true)
LORA_DECODE_TILE(columns_f32_t2,     2,       2,          0,       8,     512,     1,   true)
LORA_DECODE_TILE(columns_f32_t4,     4,       4,          0,       8,     512,     1,   true)
LORA_DECODE_TILE(columns_f32_t8,     8,       8,          0,       4,     512,     1,   true)
LORA_DECODE_TILE(columns_f32_any,    1,       1,          0,       4,     512,     1,   false)
LORA_DECODE_TILE(columns_16bit_t1,   1,       1,          0,       8,     512,     2,   true)
LORA_DECODE_TILE(columns_16bit_t2,   2,       2,          0,       8,     512,     1,   true)
LORA_DECODE_TILE(columns_16bit_t4,   4,       4,          0,       8,     512,     1,   true)
LORA_DECODE_TILE(columns_16bit_any,  1,       1,          0,       8,     512,     1,   false)
LORA_DECODE_TILE(rows_mma_n2,       16,       4,         16,       8,     512,     1,   true)
LORA_DECODE_TILE(rows_mma_n4,       16,       4,         32,       8,     512,     1,   true)
LORA_DECODE_TILE(rows_mma_n8,       16,       4,         64,       8,     512,     1,   true)
LORA_DECODE_TILE(rows_mma_n12,      16,       4,         96,      12,     512,     1,   true)
LORA_DECODE_TILE(columns_mma,       16,       4,         64,       8,     256,     2,   true)
// clang-format on

}  // namespace tiles
}  // namespace lora
