// What the adapters add to a y tile on wgmma (sm_90a): T and B follow x and W0 through the ring as further K steps.
//
// The producer warpgroup's threads load T and B, since B's rows may start and end anywhere; a stage holds up to 64 values of
// a segment's rank. The consumers multiply 64 columns at a time, in a copy of their accumulators, and copy back only the
// columns of the segment.
//
// In dx the left operand is Q and the right one A, in MN-major panels of 64 columns. Q·A has accumulators of its own, and
// dropout masks it before it is added.
#pragma once

#include <lora/dx.h>
#include <lora/wgmma/pipeline.h>

namespace lora {

/// Values of a segment's rank that a stage holds from `k` on, zeros behind the last among them.
GPU_DEVICE u32 low_rank_values(const LoraSegment& segment, u32 k) {
  const u32 left = segment.factors.rank - k;
  return left <= 16 ? 16 : left <= 32 ? 32 : 64;
}

// --- Producer.

/// `chunks` of a segment's rank from `low.k` on, for every column of a tile.
template <class C>
GPU_DEVICE void store_b(const Pipeline<C>& pipe, const SegmentFactors& factors, const LowRankStep& low, u32 first_column,
                        u32 chunks, u32 stage) {
  using E = typename C::E;
  const LoraSegment& segment = pipe.p.segments[low.segment];
  const LoraFactors& own = factors[low.segment];
  const bool b_aligned = tile::rows_are_aligned<E>(own.b, own.b_stride) && own.rank % 8 == 0;
#pragma unroll 1
  for (u32 i = threadIdx.x % 128; i < C::columns * chunks; i += 128) {
    const u32 row = i / chunks, chunk = i % chunks, column = first_column + row, first = low.k + 8 * chunk;
    Chunk b = tile::zero_chunk;
    if (column >= segment.begin && column < segment.end) {
      const E* source = static_cast<const E*>(own.b) + u64(column - segment.begin) * own.b_stride;
      b = b_aligned ? tile::load_weight<E, true>(source, first, own.rank)
                    : tile::load_weight<E, false>(source, first, own.rank);
    }
    store_shared(pipe.right(stage) + tile::swizzled<C::row_chunks>(row, chunk), b);
  }
}

/// Of dx: `values` rows of A from `k` on, in panels of 64 columns.
template <class C>
GPU_DEVICE void store_a(const Pipeline<C>& pipe, const LoraSegment& segment, u32 k, u32 first_column, u32 values, u32 stage) {
  using E = typename C::E;
  const LoraForward& p = pipe.p;
  constexpr u32 chunks = C::columns / 8;
  const bool a_aligned = a_is_aligned<E>(p, segment.factors);
#pragma unroll 1
  for (u32 i = threadIdx.x % 128; i < values * chunks; i += 128) {
    const u32 row = i / chunks, chunk = i % chunks, column = first_column + 8 * chunk;
    const E* source = row_of_a<E>(segment.factors, k + row);
    const u32 end = source != nullptr ? p.columns : 0;
    const Chunk a = a_aligned ? tile::load_weight<E, true>(source, column, end)
                              : tile::load_weight<E, false>(source, column, end);
    store_shared(pipe.right(stage) + chunk / 8 * 64 * C::row_chunks + tile::swizzled<C::row_chunks>(row, chunk % 8), a);
  }
}

/// A step's T and B, of dx Q and A, by all threads of the producer warpgroup; one of them `copies`. Waits for its tiles of T.
template <class C>
GPU_DEVICE void load_low_rank(const Pipeline<C>& pipe, const SegmentFactors& factors, const ForwardTask& task,
                              const LowRankStep& low, bool copies, typename Pipeline<C>::Position at) {
  using E = typename C::E;
  const LoraForward& p = pipe.p;
  const LoraSegment& segment = p.segments[low.segment];
  const u32 first_row = task.row_tile * C::rows, first_column = task.column_tile * C::columns;
  const u32 stage = at.stage(), t_begin = segment.t_begin + low.k;
  const u32 t_end = segment.t_begin + padded_rank(segment), chunks = low_rank_values(segment, low.k) / 8;
  pipe.await_empty(at);
  await_t(p, task.row_tile, t_begin, gpu::min(t_begin + C::depth, t_end), task.epoch);
#pragma unroll 1
  for (u32 i = threadIdx.x % 128; i < C::rows * chunks; i += 128) {
    const u32 row = i / chunks, chunk = i % chunks;
    const E* row_of_t = static_cast<const E*>(p.t) + u64(first_row + row) * p.t_stride;
    Chunk t = tile::zero_chunk;
    // Rows beyond the last token are zeros: of a pair, one row tile may lie beyond it, and T of another one is not awaited.
    if (first_row + row < p.tokens && t_begin + 8 * chunk < t_end) {
      t = load(reinterpret_cast<const Chunk*>(row_of_t + t_begin) + chunk);
    }
    store_shared(pipe.left(stage) + tile::swizzled<C::row_chunks>(row, chunk), t);
  }
  if constexpr (C::factors == Major::K) {
    store_b(pipe, factors, low, first_column, chunks, stage);
  } else {
    store_a(pipe, segment, low.k, first_column, 8 * chunks, stage);
  }
  pipe.commit_stores(stage, copies);
}

// --- Consumers.

/// d += s·T·Bᵀ in columns `begin` to `end` of the tile, over 16·K_STEPS of the rank.
///
/// The number of products is known when compiled, and the sums of 64 columns are variables of their own from the copy to the
/// copy back: otherwise ptxas serialises all products of the kernel.
template <u32 K_STEPS, class C>
GPU_DEVICE void add_t_b(const Pipeline<C>& pipe, float (&d)[C::columns / 2], u32 stage, u32 begin, u32 end) {
#pragma unroll
  for (u32 part = 0; part < C::parts; part++) {
    if (64 * part >= end || 64 * part + 64 <= begin) continue;
    float sum[32];
#pragma unroll
    for (u32 i = 0; i < 32; i++) sum[i] = d[32 * part + i];
    wgmma_fence_operands(sum);
    wgmma_fence();
#pragma unroll
    for (u32 k = 0; k < K_STEPS; k++) {
      const u64 a = pipe.left_descriptor(stage, k), b = pipe.right_descriptor(stage, 64 * part, k);
      wgmma_m64k16<typename C::E, 64, Major::K, Major::K>(sum, a, b, 1);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_fence_operands(sum);
#pragma unroll
    for (u32 i = 0; i < 32; i++) {
      const u32 column = 64 * part + i / 4 * 8 + lane_id() % 4 * 2 + i % 2;
      if (column >= begin && column < end) d[32 * part + i] = sum[i];
    }
  }
}

/// Of dx: d += Q·A in all columns, where dropout keeps x.
template <u32 K_STEPS, class C>
GPU_DEVICE void add_q_a(const Pipeline<C>& pipe, float (&d)[C::columns / 2], u32 stage, const u32 (&kept)[C::parts], u32 columns) {
#pragma unroll
  for (u32 part = 0; part < C::parts; part++) {
    if (64 * part >= columns) continue;
    float sum[32];
#pragma unroll
    for (u32 i = 0; i < 32; i++) sum[i] = 0.0f;
    wgmma_fence_operands(sum);
    wgmma_fence();
#pragma unroll
    for (u32 k = 0; k < K_STEPS; k++) {
      const u64 a = pipe.left_descriptor(stage, k), b = pipe.panel_descriptor(stage, part, k);
      wgmma_m64k16<typename C::E, 64, Major::K, Major::MN>(sum, a, b, 1);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_fence_operands(sum);
#pragma unroll
    for (u32 i = 0; i < 32; i++) {
      const u32 bit = 8 * (i / 16 * 2 + i / 2 % 2) + i / 4 % 4 * 2 + i % 2;
      if (kept[part] >> bit & 1) d[32 * part + i] = gpu::fma(pipe.p.dropout.scale, sum[i], d[32 * part + i]);
    }
  }
}

/// Which of a lane's sums of a tile of dx dropout keeps: a word for 64 columns, in which a byte is for 32 columns of a row.
template <class C>
GPU_DEVICE void find_kept(const LoraForward& p, u32 (&kept)[C::parts], u32 first_row, u32 first_column) {
  const bool drops = p.dropout.threshold != 0 && p.segment_count != 0;
#pragma unroll
  for (u32 part = 0; part < C::parts; part++) {
    kept[part] = drops ? 0 : ~0u;
#pragma unroll 1
    for (u32 i = 0; drops && i < 4; i++) {
      const u32 row = first_row + lane_id() / 4 + 8 * (i % 2), block = (first_column + 64 * part) / 32 + i / 2;
      kept[part] |= tile::kept_of_eight(p.dropout, row, block, lane_id() % 4) << (8 * i);
    }
  }
}

/// One step: d += s·T·Bᵀ in a segment's columns.
template <class C>
GPU_DEVICE void add_step(const Pipeline<C>& pipe, float (&d)[C::columns / 2], const LowRankStep& low, u32 first_column,
                         typename Pipeline<C>::Position at) {
  const LoraSegment& segment = pipe.p.segments[low.segment];
  const u32 begin = gpu::max(segment.begin, first_column) - first_column, end = segment.end - first_column;
  const u32 values = low_rank_values(segment, low.k);
  pipe.await_full(at);
  if (values == 16) {
    add_t_b<1>(pipe, d, at.stage(), begin, end);
  } else if (values == 32) {
    add_t_b<2>(pipe, d, at.stage(), begin, end);
  } else {
    add_t_b<4>(pipe, d, at.stage(), begin, end);
  }
  pipe.release(at.stage());
}

/// One step of dx.
template <class C>
GPU_DEVICE void add_step_of_dx(const Pipeline<C>& pipe, float (&d)[C::columns / 2], const LowRankStep& low,
                               const u32 (&kept)[C::parts], u32 columns, typename Pipeline<C>::Position at) {
  const u32 values = low_rank_values(pipe.p.segments[low.segment], low.k);
  pipe.await_full(at);
  if (values == 16) {
    add_q_a<1>(pipe, d, at.stage(), kept, columns);
  } else if (values == 32) {
    add_q_a<2>(pipe, d, at.stage(), kept, columns);
  } else {
    add_q_a<4>(pipe, d, at.stage(), kept, columns);
  }
  pipe.release(at.stage());
}

/// d += what the adapters add to a tile: their step `first` and every `distance`-th after it.
template <class C>
GPU_DEVICE void add_adapters(const Pipeline<C>& pipe, float (&d)[C::columns / 2], const ForwardTask& task, u32 first,
                             u32 distance, typename Pipeline<C>::Position& at) {
  const u32 first_column = task.column_tile * C::columns;
  const auto steps = low_rank_steps<C>(pipe.p, first_column);
  const u32 count = steps.count();
  if constexpr (C::factors == Major::K) {
#pragma unroll 1
    for (u32 i = first; i < count; i += distance) {
      add_step(pipe, d, steps.at(i), first_column, at);
      at.advance();
    }
  } else {
    u32 kept[C::parts];
    find_kept<C>(pipe.p, kept, warp_row<C>(task), first_column);
#pragma unroll 1
    for (u32 i = first; i < count; i += distance) {
      add_step_of_dx(pipe, d, steps.at(i), kept, pipe.p.columns - first_column, at);
      at.advance();
    }
  }
}

}  // namespace lora
