// Step 3 of the ladder: the CTAs of the one launch share out the rows of T among them. share.h says how, and why the launch
// always ends.
//
// What it adds to step 2: A is loaded once and T computed once, as in step 1. T goes through global memory again, but it is
// small, and a CTA reads it as soon as it is there.
// What it costs: a wait. Every CTA needs all of T, so it waits for the slowest CTA that computes a part of it. While a CTA
// waits it asks for nothing of W0. A flag that is not set yet is read again: the bytes below hold if T is complete when a
// CTA first looks.
//
// Limits: as step 2. The workspace (counter and flags) is zeroed once; every launch leaves it ready for the next.
//
// launches: 1
// flops: 2 * tokens * (columns * depth + rank * depth + columns * rank)
// bytes of W0: 4 * columns * depth
// bytes of A: 4 * rank * depth
// bytes of x: 4 * tokens * depth * ctas
// bytes of B: 4 * columns * rank
// bytes of T: 4 * tokens * rank * (1 + ctas)
// bytes of y: 4 * tokens * columns
// bytes of tickets: 8 * (tickets + ctas) + 8
// bytes of flags: 4 * tickets * (1 + ctas)
//
// Next: the base product while T is pending (step4_async_copies.cu).
//
// sass: ladder_shared_out  registers <= 96  has LDG.E  has ATOMG  has SHFL
// targets: sm_75 sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
#include <ladder/share.h>

GPU_KERNEL(ladder_shared_out, LoraLadder, LORA_LADDER_THREADS, 1) {
  using namespace ladder;
  const LoraLadder& p = params;
  SharedMemory shared;
  float* x = shared.take<float>(p.tokens * x_row(p));
  float* t = shared.take<float>(p.tokens * p.rank);
  u64* word = shared.take<u64>(1);
  copy_x(p, x);

  const u32 epoch = compute_share(p, x, word);
  receive(p, t, epoch);

  const u32 column = column_of_warp();
  if (column >= p.columns) return;
  float sum[max_tokens] = {};
  multiply(sum, p.weight + u64(column) * p.weight_stride, x, x_row(p), p.depth, p.tokens);
  multiply(sum, p.b + u64(column) * p.b_stride, t, p.rank, p.rank, p.tokens);
  add_lanes(sum, p.tokens, [&](u32 m, float total) { store(p.y + u64(m) * p.y_stride + column, total); });
}
