// What steps 2 to 4 of the ladder share: x in shared memory, and sums that the lanes of a warp compute together.
#pragma once

#include <abi.h>
#include <gpu/block.h>
#include <gpu/math.h>
#include <gpu/memory.h>
#include <gpu/shared.h>
#include <gpu/warp.h>

namespace ladder {

using namespace gpu;

constexpr u32 threads = LORA_LADDER_THREADS, warps = threads / warp_size, max_tokens = LORA_LADDER_TOKENS;

/// The column of y that this warp computes; the last CTA has warps without one.
GPU_DEVICE u32 column_of_warp() { return blockIdx.x * warps + warp_id(); }

/// Floats from one row of x to the next in shared memory: whole chunks of 16 bytes, which step 4 reads.
GPU_DEVICE u32 x_row(const LoraLadder& p) { return (p.depth + 3) / 4 * 4; }

/// Copies x to shared memory, with zeros from the end of a row to the next. All threads of the CTA call it.
GPU_DEVICE void copy_x(const LoraLadder& p, float* x) {
  for (u32 m = 0; m < p.tokens; m++) {
    for (u32 k = threadIdx.x; k < x_row(p); k += threads) {
      x[m * x_row(p) + k] = k < p.depth ? load_input(p.x + u64(m) * p.x_stride + k) : 0.0f;
    }
  }
  sync_block();
}

/// sum[m] += Σ_k row[k]·input[m][k] over every 32nd k, from the lane's number on. `row` is a row of W0, A or B, which is
/// loaded once for all tokens; `input` is in shared memory, `stride` floats from one token to the next.
GPU_DEVICE void multiply(float (&sum)[max_tokens], const float* row, const float* input, u32 stride, u32 length,
                         u32 tokens) {
  for (u32 k = lane_id(); k < length; k += warp_size) {
    const float factor = load_constant(row + k);
#pragma unroll
    for (u32 m = 0; m < max_tokens; m++) {
      if (m < tokens) sum[m] = gpu::fma(factor, input[m * stride + k], sum[m]);
    }
  }
}

/// Adds the lanes' sums and calls put(m, total) for every token, in lane 0.
template <class F>
GPU_DEVICE void add_lanes(float (&sum)[max_tokens], u32 tokens, F&& put) {
#pragma unroll
  for (u32 m = 0; m < max_tokens; m++) {
    for (u32 offset = warp_size / 2; offset > 0; offset /= 2) sum[m] += shuffle_xor(sum[m], offset);
    if (m < tokens && lane_id() == 0) put(m, sum[m]);
  }
}

}  // namespace ladder
