// Step 4 of the ladder: W0 comes by asynchronous copies, through a ring of stages in shared memory, and the base product is
// computed while T is pending.
//
// Why copies. A GPU reaches its memory bandwidth only if enough bytes are in flight: bandwidth × latency. With 3.35 TB/s for
// 132 SMs (H100) and a latency of, for example, 800 ns, that is 20 KiB an SM. A load keeps a register busy until its value
// is there. In step 3, on sm_90a, a thread issues four loads of 4 bytes at a time, which is 4 KiB a CTA, and none of them
// while it waits for T. A copy (cp.async) writes to shared memory and keeps no register busy.
//
// Who owns what. A stage of the ring holds 128 elements of each of the CTA's 8 rows of W0. A lane copies 16 bytes of its
// warp's row and multiplies the same 16 bytes when they are there. tile/ring.h issues the copies 7 steps ahead, so up to 28
// KiB a CTA are in flight. The barrier in its loop is for kernels whose threads read stages that other threads copied; here
// each lane reads its own copies, for which the wait before the barrier is enough.
//
// What it adds to step 3: those bytes in flight, and another order. A CTA computes its share of T, then its base product,
// and only then waits for T, which the other CTAs have stored meanwhile. The bytes are those of step 3.
//
// Limits: as step 2, with 32 KiB more of shared memory; rows of W0 start at multiples of 16 bytes (they may end anywhere).
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
// Next: the kernels of kernels/lora; README.md says what they do beyond this.
//
// sass: ladder_async_copies  registers <= 96  has ATOMG  has SHFL  has LDS.128
// sass: ladder_async_copies  has LDGSTS  on sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
// targets: sm_75 sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
#include <gpu/convert.h>
#include <ladder/share.h>
#include <tile/ring.h>

GPU_KERNEL(ladder_async_copies, LoraLadder, LORA_LADDER_THREADS, 1) {
  using namespace ladder;
  const LoraLadder& p = params;
  constexpr u32 stages = LORA_LADDER_STAGES, step_depth = 4 * warp_size;
  SharedMemory shared;
  float* x = shared.take<float>(p.tokens * x_row(p));
  float* t = shared.take<float>(p.tokens * p.rank);
  u64* word = shared.take<u64>(1);
  Chunk* ring = shared.take<Chunk>(stages * threads);
  copy_x(p, x);

  const u32 epoch = compute_share(p, x, word);

  // A warp without a column takes part in the barriers, and copies and multiplies nothing.
  const u32 column = column_of_warp(), end = column < p.columns ? p.depth : 0;
  const float* row = p.weight + u64(column) * p.weight_stride;
  float sum[max_tokens] = {};
  tile::through_ring<stages>(
      (p.depth + step_depth - 1) / step_depth,
      [&](u32 step, u32 stage) {
        const u32 k = step * step_depth + 4 * lane_id();
        // Of the last chunk of a row only what belongs to it is read; the rest becomes zero.
        const u32 place = shared_address(ring + stage * threads + threadIdx.x);
        if (k < end) copy_async_16(place, row + k, gpu::min(4 * (end - k), 16u));
      },
      [&](u32 step, u32 stage) {
        const u32 k = step * step_depth + 4 * lane_id();
        if (k >= end) return;
        const Chunk factor = load_shared(ring + stage * threads + threadIdx.x);
#pragma unroll
        for (u32 m = 0; m < max_tokens; m++) {
          if (m >= p.tokens) break;
          const Chunk input = load_shared(reinterpret_cast<const Chunk*>(x + m * x_row(p) + k));
#pragma unroll
          for (u32 i = 0; i < 4; i++) sum[m] = gpu::fma(from_bits(factor.word[i]), from_bits(input.word[i]), sum[m]);
        }
      });

  receive(p, t, epoch);
  if (column >= p.columns) return;
  multiply(sum, p.b + u64(column) * p.b_stride, t, p.rank, p.rank, p.tokens);
  add_lanes(sum, p.tokens, [&](u32 m, float total) { store(p.y + u64(m) * p.y_stride + column, total); });
}
