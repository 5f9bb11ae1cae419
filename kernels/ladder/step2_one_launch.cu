// Step 2 of the ladder: one launch. T and x stay in shared memory, so every CTA computes all of T for itself.
//
// Who owns what. A CTA has 8 warps and computes 8 columns of y, a warp a column, for all tokens. It first copies x to shared
// memory. Then its warps take rows of A in turns, which gives s·T, in shared memory as well. Then a warp sums its column:
// first over the row of W0, then over the row of B with s·T in place of x. The low-rank term is `rank` further steps of the
// same sum. That is what "fused" means, in the large kernels as well (kernels/lora/forward_tile.h).
//
// What it adds to step 1: x is loaded once a CTA and not once a column, W0 once for all tokens, and y is stored once. No
// launch waits for another.
// What it costs: every CTA loads all of A and computes all of T. The GPU's L2 cache serves most of these loads, but while a
// CTA computes T it asks for nothing of W0.
//
// Limits: 1 to 4 tokens; x and T must fit into the shared memory of a CTA.
//
// launches: 1
// flops: 2 * tokens * (columns * depth + ctas * rank * depth + columns * rank)
// bytes of W0: 4 * columns * depth
// bytes of A: 4 * rank * depth * ctas
// bytes of x: 4 * tokens * depth * ctas
// bytes of B: 4 * columns * rank
// bytes of y: 4 * tokens * columns
//
// Next: T computed once, each row by one CTA for all (step3_shared_out.cu).
//
// sass: ladder_one_launch  registers <= 96  has LDG.E  has SHFL
// targets: sm_75 sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
#include <ladder/dot.h>

GPU_KERNEL(ladder_one_launch, LoraLadder, LORA_LADDER_THREADS, 1) {
  using namespace ladder;
  const LoraLadder& p = params;
  SharedMemory shared;
  float* x = shared.take<float>(p.tokens * x_row(p));
  float* t = shared.take<float>(p.tokens * p.rank);
  copy_x(p, x);

  for (u32 j = warp_id(); j < p.rank; j += warps) {
    float sum[max_tokens] = {};
    multiply(sum, p.a + u64(j) * p.a_stride, x, x_row(p), p.depth, p.tokens);
    add_lanes(sum, p.tokens, [&](u32 m, float total) { t[m * p.rank + j] = p.scale * total; });
  }
  sync_block();

  const u32 column = column_of_warp();
  if (column >= p.columns) return;
  float sum[max_tokens] = {};
  multiply(sum, p.weight + u64(column) * p.weight_stride, x, x_row(p), p.depth, p.tokens);
  multiply(sum, p.b + u64(column) * p.b_stride, t, p.rank, p.rank, p.tokens);
  add_lanes(sum, p.tokens, [&](u32 m, float total) { store(p.y + u64(m) * p.y_stride + column, total); });
}
