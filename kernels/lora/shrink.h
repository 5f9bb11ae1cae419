// The shrink of the decode kernels, T = x A^T, in the launch of the base product: which CTA computes which values of T, and
// how the other CTAs receive them.
//
// Tickets. A ticket stands for a few rows of A and the values of T that they give for a few tokens. A CTA takes tickets from
// a counter in global memory and computes their values of T until it gets a ticket beyond the last row; only then does it
// start its part of the base product. So when a CTA waits for T, all of T has been claimed by CTAs that are running or have
// ended, and that wait for nothing before they have stored it: the launch ends under any schedule, even with one resident
// CTA. With one ticket per CTA, all resident CTAs could wait for rows whose CTAs cannot start. Each CTA takes exactly one
// ticket beyond the last row, so the number of tickets is known, and the CTA that takes the last one sets the counter up for
// the next launch. Nothing is reset from outside, and a captured graph can be replayed.
//
// Words. A value of T and the launch's epoch are stored in one 64-bit word, and readers poll that word. Value and flag
// arrive together: no fence, no second trip to L2, and nothing to clear. The epoch comes from the upper half of the ticket
// counter and grows by one per launch. A stale word is mistaken for a new one only if it was last written exactly 2^32 - 2
// launches ago.
//
// Cost beyond reading A and x: one atomic per ticket and one more per CTA; 8 bytes per value of T, written once and read, if
// it is there at the first poll, once by each CTA that finishes columns of its segment.
#pragma once

#include <abi.h>
#include <gpu/atomic.h>
#include <gpu/block.h>
#include <gpu/shared.h>
#include <gpu/math.h>
#include <lora/factors.h>
#include <lora/tiles.h>
#include <tile/elements.h>
#include <tile/reduce.h>
#include <tile/ticket.h>

namespace lora {

using namespace gpu;

/// Row `t` of [A_0; A_1; ...], or null if the adapter in the slot has a lower rank.
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

/// TILE is one of the decode tiles of lora/tiles.h.
template <class E, class TILE>
class Shrink {
 public:
  /// Tokens and, at most, rows of A of one ticket. The scalar loads of the unaligned path leave no registers for several
  /// rows, so its plan has one row per ticket.
  static constexpr u32 tokens = TILE::ticket_tokens, most_rows = TILE::aligned ? LORA_SHRINK_ROWS : 1;
  static constexpr u32 threads = TILE::threads, warps = threads / warp_size;

  GPU_DEVICE Shrink(const LoraDecode& params, const SegmentFactors& factors, SharedMemory& shared)
      : p(params), factors(factors), word(shared.take<u64>(2)), sums(shared.take<float>(warps * most_rows * tokens)) {}

  /// Fetches the factors, then computes rows of T until no ticket is left. All threads of the CTA call it. Returns the
  /// launch's epoch.
  GPU_DEVICE u32 run() {
    const u32 groups = (p.tokens + tokens - 1) / tokens, per_group = (p.total_rank + p.shrink_rows - 1) / p.shrink_rows;
    const u32 claims = groups * per_group, draws = claims + gridDim.x * gridDim.y * gridDim.z;
    if (threadIdx.x == 0) word[0] = draw(draws);
    factors.fetch(p);
    sync_block();
    u64 mine = word[0];
    for (u32 round = 1; tile::ticket_number(mine) < claims; round++) {
      // The next ticket is taken while this one's rows are computed.
      if (threadIdx.x == 0) word[round % 2] = draw(draws);
      const u32 ticket = tile::ticket_number(mine);
      compute(ticket / per_group * tokens, ticket % per_group * p.shrink_rows, tile::ticket_epoch(mine));
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

  /// Computes T for tokens tokens from `token` on and shrink_rows rows of A from `t` on. All threads of the CTA call it.
  GPU_DEVICE void compute(u32 token, u32 t, u32 epoch) {
    constexpr u32 elements = chunk_elements<E>, values = most_rows * tokens;
    const u32 rows = gpu::min(p.shrink_rows, p.total_rank - t);
    const E* a[most_rows];
#pragma unroll
    for (u32 r = 0; r < most_rows; r++) a[r] = r < rows ? shrink_row<E>(p, factors, t + r) : nullptr;
    const E* x = static_cast<const E*>(p.x);

    float sum[values] = {};
    // Not unrolled: in most layers one step of the CTA covers all of K, and the main loop needs the registers.
#pragma unroll 1
    for (u32 k = threadIdx.x * elements; k < p.depth; k += threads * elements) {
      Chunk weight[most_rows];
#pragma unroll
      for (u32 r = 0; r < most_rows; r++) {
        weight[r] = a[r] != nullptr ? tile::load_weight<E, TILE::aligned>(a[r], k, p.depth) : tile::zero_chunk;
      }
#pragma unroll
      for (u32 m = 0; m < tokens; m++) {
        float input[elements], factor[elements];
        const u32 end = token + m < p.tokens ? p.depth : 0;
        tile::load_elements<E, TILE::aligned, tile::Source::input>(x + u64(token + m) * p.x_stride, k, end, input);
#pragma unroll
        for (u32 r = 0; r < most_rows; r++) {
          unpack<E>(weight[r], factor);
#pragma unroll
          for (u32 i = 0; i < elements; i++) sum[r * tokens + m] = gpu::fma(factor[i], input[i], sum[r * tokens + m]);
        }
      }
    }

    // A warp reduces at most 32 sums at a time, one per lane.
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
    for (u32 i = threadIdx.x; i < rows * tokens; i += threads) {
      float total = 0.0f;
#pragma unroll
      for (u32 w = 0; w < warps; w++) total += sums[w * values + i];
      const u32 m = token + i % tokens;
      if (m < p.tokens) store_relaxed(p.t + u64(m) * p.total_rank + t + i / tokens, u64(t_word(total, epoch)));
    }
    // The next round overwrites `sums` and reads the next ticket.
    sync_block();
  }

  const LoraDecode& p;
  SegmentFactors factors;
  u64* word;
  float* sums;
};

}  // namespace lora
