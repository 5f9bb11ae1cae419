// T = x A^T inside the base product's launch: who computes its rows, and how everyone gets to know them.
//
// Tickets. A CTA draws tickets from a counter in global memory and computes rows of T for each, until it draws one that
// stands for no rows; only then does it turn to its part of the base product. So whoever waits for T has seen that all
// of T was claimed, by CTAs that run and wait for nobody: no schedule can deadlock, not even one CTA at a time. Every
// CTA draws exactly one ticket beyond the last row, so the drawer of the very last knows that it is, and sets the counter
// up for the next launch. Nothing is reset from outside, and a captured graph replays.
//
// Words. A value of T is published together with the launch's epoch in one 64-bit store, and readers poll that word:
// value and flag arrive together, with no fence, no second trip, and nothing to clear. The epoch is the upper half of
// the ticket counter and grows by one a launch. A word could be mistaken only if it were left unwritten for exactly
// 2^32 launches.
//
// Cost beyond the rows' own bytes: one atomic a CTA, 8 bytes a value of T written once and read once by each CTA that
// has columns in its segment.
#pragma once

#include <abi.h>
#include <gpu/atomic.h>
#include <gpu/block.h>
#include <gpu/shared.h>
#include <gpu/math.h>
#include <lora/factors.h>
#include <tile/elements.h>
#include <tile/reduce.h>
#include <tile/ticket.h>

namespace lora {

using namespace gpu;

/// Row `t` of [A_0; A_1; ...], or null if the adapter in the slot has fewer than its place.
template <class E>
GPU_DEVICE const E* shrink_row(const LoraDecode& p, const SegmentFactors& all, u32 t) {
  u32 segment = 0;
  for (u32 s = 1; s < p.segment_count; s++) {
    if (t >= p.segments[s].t_begin) segment = s;
  }
  const LoraFactors& factors = all[segment];
  const u32 row = t - p.segments[segment].t_begin;
  return row < factors.rank ? static_cast<const E*>(factors.a) + u64(row) * factors.a_stride : nullptr;
}

GPU_DEVICE u64 t_word(float value, u32 epoch) { return u64(epoch) << 32 | bits(value); }

/// TOKENS is what one ticket stands for, THREADS the size of a CTA.
template <class E, u32 TOKENS, u32 THREADS, bool ALIGNED>
class Shrink {
 public:
  static constexpr u32 warps = THREADS / warp_size;
  // The slow path's scalar loads leave no registers for several rows; its plan says one a ticket.
  static constexpr u32 most_rows = ALIGNED ? LORA_SHRINK_ROWS : 1;

  GPU_DEVICE Shrink(const LoraDecode& params, const SegmentFactors& factors, SharedMemory& shared)
      : p(params), factors(factors), word(shared.take<u64>(2)), sums(shared.take<float>(warps * most_rows * TOKENS)) {}

  /// Fetches the factors, and computes rows of T until none is left to claim. All threads of the CTA call it; returns the
  /// launch's epoch.
  GPU_DEVICE u32 run() {
    const u32 groups = (p.tokens + TOKENS - 1) / TOKENS, per_group = (p.total_rank + p.shrink_rows - 1) / p.shrink_rows;
    const u32 claims = groups * per_group, draws = claims + gridDim.x * gridDim.y * gridDim.z;
    if (threadIdx.x == 0) word[0] = draw(draws);
    factors.fetch(p);
    sync_block();
    u64 mine = word[0];
    for (u32 round = 1; tile::ticket_number(mine) < claims; round++) {
      // The next ticket is on its way while this one's rows are computed.
      if (threadIdx.x == 0) word[round % 2] = draw(draws);
      const u32 ticket = tile::ticket_number(mine);
      compute(ticket / per_group * TOKENS, ticket % per_group * p.shrink_rows, tile::ticket_epoch(mine));
      mine = word[round % 2];
    }
    return tile::ticket_epoch(mine);
  }

 private:
  GPU_DEVICE u64 draw(u32 draws) {
    const u64 ticket = tile::draw_ticket(p.ticket);
    tile::settle_ticket(p.ticket, ticket, draws);
    return ticket;
  }

  /// T[token.., t..] for TOKENS tokens and shrink_rows rows, by the whole CTA.
  GPU_DEVICE void compute(u32 token, u32 t, u32 epoch) {
    constexpr u32 elements = chunk_elements<E>, values = most_rows * TOKENS;
    const u32 rows = gpu::min(p.shrink_rows, p.total_rank - t);
    const E* a[most_rows];
#pragma unroll
    for (u32 r = 0; r < most_rows; r++) a[r] = r < rows ? shrink_row<E>(p, factors, t + r) : nullptr;
    const E* x = static_cast<const E*>(p.x);

    float sum[values] = {};
    // Not unrolled: a CTA covers most depths in one step, and the registers are the main loop's.
#pragma unroll 1
    for (u32 k = threadIdx.x * elements; k < p.depth; k += THREADS * elements) {
      Chunk weight[most_rows];
#pragma unroll
      for (u32 r = 0; r < most_rows; r++) {
        weight[r] = a[r] != nullptr ? tile::load_weight<E, ALIGNED>(a[r], k, p.depth) : tile::zero_chunk;
      }
#pragma unroll
      for (u32 m = 0; m < TOKENS; m++) {
        float input[elements], factor[elements];
        const u32 end = token + m < p.tokens ? p.depth : 0;
        tile::load_elements<E, ALIGNED>(x + u64(token + m) * p.x_stride, k, end, input);
#pragma unroll
        for (u32 r = 0; r < most_rows; r++) {
          unpack<E>(weight[r], factor);
#pragma unroll
          for (u32 i = 0; i < elements; i++) sum[r * TOKENS + m] = gpu::fma(factor[i], input[i], sum[r * TOKENS + m]);
        }
      }
    }

    // A warp's sums are reduced 32 values at a time at most, which is as many as it has lanes.
    constexpr u32 at_once = values < 32 ? values : 32;
#pragma unroll
    for (u32 first = 0; first < values; first += at_once) {
      float part[at_once];
#pragma unroll
      for (u32 i = 0; i < at_once; i++) part[i] = sum[first + i];
      tile::reduce_transposed<at_once>(part);
      if (tile::holds_reduced<at_once>(lane_id())) {
        sums[warp_id() * values + first + tile::reduced_index<at_once>(lane_id())] = part[0];
      }
    }
    sync_block();
    for (u32 i = threadIdx.x; i < rows * TOKENS; i += THREADS) {
      float total = 0.0f;
#pragma unroll
      for (u32 w = 0; w < warps; w++) total += sums[w * values + i];
      const u32 m = token + i % TOKENS;
      if (m < p.tokens) store_relaxed(p.t + u64(m) * p.total_rank + t + i / TOKENS, u64(t_word(total, epoch)));
    }
    // `sums` is written again by the next round, and the next ticket is read.
    sync_block();
  }

  const LoraDecode& p;
  SegmentFactors factors;
  u64* word;
  float* sums;
};

}  // namespace lora
