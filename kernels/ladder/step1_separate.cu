// Step 1 of the ladder: y = x W0^T + s·(x A^T) B^T as three kernels, launched one after the other. This is how a LoRA that
// is kept apart from its layer usually runs: as two small linear layers beside the large one.
//
//   ladder_shrink   T = x A^T          tokens · rank warps
//   ladder_base     y = x W0^T         tokens · columns warps
//   ladder_expand   y = y + s·T B^T    tokens · columns warps
//
// Who owns what. A warp computes one element of the result. Its lanes take every 32nd k of the sum, so that the 32 loads of
// one instruction are 128 bytes in a row, and add their 32 sums with shuffles. The order of the additions is fixed, so the
// result has the same bits in every run. Nothing is shared between warps.
//
// Cost. Both operands of every product are loaded from global memory: x as often as W0. T and y make a round trip through
// memory between launches. A launch must end before the next begins, and the shrink has few warps, so most of the GPU is
// idle while it runs.
//
// launches: 3
// flops: 2 * tokens * (columns * depth + rank * depth + columns * rank)
// bytes of W0: 4 * tokens * columns * depth
// bytes of A: 4 * tokens * rank * depth
// bytes of x: 4 * tokens * (columns + rank) * depth
// bytes of B: 4 * tokens * columns * rank
// bytes of T: 4 * tokens * rank + 4 * tokens * columns * rank
// bytes of y: 4 * tokens * columns * 3
//
// Next: one launch, and x loaded once a CTA (step2_one_launch.cu).
//
// sass: ladder_*  registers <= 64  has LDG.E  has SHFL
// targets: sm_75 sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
#include <abi.h>
#include <gpu/math.h>
#include <gpu/memory.h>
#include <gpu/warp.h>

namespace ladder {

using namespace gpu;

/// The number of this warp in the launch: the element of the result that it computes.
GPU_DEVICE u32 element() { return blockIdx.x * (LORA_LADDER_THREADS / warp_size) + warp_id(); }

/// Σ_k left[k]·right[k], in every lane of the warp.
GPU_DEVICE float dot(const float* left, const float* right, u32 length) {
  float sum = 0.0f;
  for (u32 k = lane_id(); k < length; k += warp_size) {
    sum = gpu::fma(load_input(left + k), load_constant(right + k), sum);
  }
  for (u32 offset = warp_size / 2; offset > 0; offset /= 2) sum += shuffle_xor(sum, offset);
  return sum;
}

}  // namespace ladder

GPU_KERNEL(ladder_shrink, LoraLadder, LORA_LADDER_THREADS, 1) {
  using namespace ladder;
  const u32 token = element() / params.rank, j = element() % params.rank;
  if (token >= params.tokens) return;
  const float* x = params.x + u64(token) * params.x_stride;
  const float sum = dot(params.a + u64(j) * params.a_stride, x, params.depth);
  if (lane_id() == 0) store(params.t + token * params.rank + j, sum);
}

GPU_KERNEL(ladder_base, LoraLadder, LORA_LADDER_THREADS, 1) {
  using namespace ladder;
  const u32 token = element() / params.columns, column = element() % params.columns;
  if (token >= params.tokens) return;
  const float* x = params.x + u64(token) * params.x_stride;
  const float sum = dot(params.weight + u64(column) * params.weight_stride, x, params.depth);
  if (lane_id() == 0) store(params.y + u64(token) * params.y_stride + column, sum);
}

GPU_KERNEL(ladder_expand, LoraLadder, LORA_LADDER_THREADS, 1) {
  using namespace ladder;
  const u32 token = element() / params.columns, column = element() % params.columns;
  if (token >= params.tokens) return;
  // No thread of this launch writes T, so the non-coherent load of dot() may read it.
  const float sum = dot(params.b + u64(column) * params.b_stride, params.t + token * params.rank, params.rank);
  float* y = params.y + u64(token) * params.y_stride + column;
  if (lane_id() == 0) store(y, gpu::fma(params.scale, sum, load(y)));
}
