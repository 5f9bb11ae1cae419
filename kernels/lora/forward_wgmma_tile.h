// The adapters of a tile of y on wgmma (sm_90a): T and B follow W0 through the ring as so much more depth.
//
// T and B, whose rows may start anywhere and end anywhere, are gathered by the copying warpgroup's threads: one stage in
// depth / 64. They multiply 64 columns at a time, and columns outside the segment get back what they were.
//
// FACTORS says which way A and B lie, as in lora/forward_tile.h: of dx both are panels of 64 columns, like W0 [in, out].
#pragma once

#include <lora/forward_wgmma_shrink.h>

namespace lora {

/// As the ring it uses.
template <class E, Along WEIGHT, Along FACTORS, u32 GROUPS, u32 COLUMNS, u32 STAGES, u32 CTAS = 1, u32 RIDE = 0>
class ForwardWgmmaTile : public ForwardWgmmaShrink<E, WEIGHT, FACTORS, GROUPS, COLUMNS, STAGES, CTAS, RIDE> {
 protected:
  using Shrink = ForwardWgmmaShrink<E, WEIGHT, FACTORS, GROUPS, COLUMNS, STAGES, CTAS, RIDE>;
  using Shrink::rows, Shrink::depth, Shrink::stages, Shrink::row_chunks, Shrink::parts, Shrink::left, Shrink::right;
  using Shrink::group, Shrink::low_rank, Shrink::await_empty, Shrink::hand_over, Shrink::await_full;
  using Shrink::release, Shrink::left_descriptor, Shrink::right_descriptor, Shrink::panel_descriptor;
  using Shrink::warp_row, Shrink::p, Shrink::factors;
  using Shrink::Shrink;

  // --- The warpgroup that copies.

  /// By all threads of the warpgroup: up to 64 columns of T and of B, in dx rows of A.
  GPU_DEVICE void low_rank_operands(const ForwardTask& task, const LowRankStep& low, bool copies, u32 step) const {
    const LoraSegment& segment = p.segments[low.segment];
    const u32 first_row = task.row_tile * rows, first_column = task.column_tile * COLUMNS;
    const u32 stage = step % stages, t_begin = segment.t_begin + low.k;
    const u32 t_end = segment.t_begin + padded_rank(segment), chunks = low_rank_values(segment, low.k) / 8;
    await_empty(step);
    await_t(p, task.row_tile, t_begin, gpu::min(t_begin + depth, t_end), task.epoch);
#pragma unroll 1
    for (u32 i = threadIdx.x % 128; i < rows * chunks; i += 128) {
      const u32 row = i / chunks, chunk = i % chunks;
      const E* row_of_t = static_cast<const E*>(p.t) + u64(gpu::min(first_row + row, p.tokens - 1)) * p.t_stride;
      Chunk t = tile::zero_chunk;
      if (t_begin + 8 * chunk < t_end) t = load(reinterpret_cast<const Chunk*>(row_of_t + t_begin) + chunk);
      store_shared(left(stage) + tile::swizzled<row_chunks>(row, chunk), t);
    }
    if constexpr (FACTORS == Along::Depth) {
      store_b(low, first_column, chunks, stage);
    } else {
      store_a(segment, low.k, first_column, 8 * chunks, stage);
    }
    hand_over(stage, copies);
  }

  /// `chunks` of a segment's rank from `k` on, for every column of a tile.
  GPU_DEVICE void store_b(const LowRankStep& low, u32 first_column, u32 chunks, u32 stage) const {
    const LoraSegment& segment = p.segments[low.segment];
    const LoraFactors& own = factors[low.segment];
    const bool b_aligned = tile::rows_are_aligned<E>(own.b, own.b_stride) && own.rank % 8 == 0;
#pragma unroll 1
    for (u32 i = threadIdx.x % 128; i < COLUMNS * chunks; i += 128) {
      const u32 row = i / chunks, chunk = i % chunks, column = first_column + row, first = low.k + 8 * chunk;
      Chunk b = tile::zero_chunk;
      if (column >= segment.begin && column < segment.end) {
        const E* source = static_cast<const E*>(own.b) + u64(column - segment.begin) * own.b_stride;
        b = b_aligned ? tile::load_weight<E, true>(source, first, own.rank)
                      : tile::load_weight<E, false>(source, first, own.rank);
      }
      store_shared(right(stage) + tile::swizzled<row_chunks>(row, chunk), b);
    }
  }

  /// The same of dx: `values` of the rank, a row of A each, in panels of 64 columns.
  GPU_DEVICE void store_a(const LoraSegment& segment, u32 k, u32 first_column, u32 values, u32 stage) const {
    constexpr u32 chunks = COLUMNS / 8;
    const bool a_aligned = a_is_aligned<E>(p, segment.factors);
#pragma unroll 1
    for (u32 i = threadIdx.x % 128; i < values * chunks; i += 128) {
      const u32 row = i / chunks, chunk = i % chunks, column = first_column + 8 * chunk;
      const E* source = row_of_a<E>(segment.factors, k + row);
      const u32 end = source != nullptr ? p.columns : 0;
      const Chunk a = a_aligned ? tile::load_weight<E, true>(source, column, end)
                                : tile::load_weight<E, false>(source, column, end);
      store_shared(right(stage) + chunk / 8 * 64 * row_chunks + tile::swizzled<row_chunks>(row, chunk % 8), a);
    }
  }

  /// Values of a segment's rank that one stage holds from `k` on, zeros behind the last among them.
  static GPU_DEVICE u32 low_rank_values(const LoraSegment& segment, u32 k) {
    const u32 left = segment.factors.rank - k;
    return left <= 16 ? 16 : left <= 32 ? 32 : 64;
  }

  // --- The warpgroups that multiply.

  /// d += what the adapters add to a tile: step `first` of theirs and every `distance`-th after it.
  GPU_DEVICE void add_adapters(float (&d)[COLUMNS / 2], const ForwardTask& task, u32 first, u32 distance, u32& step) const {
    const u32 first_column = task.column_tile * COLUMNS;
    const auto adapters = low_rank(first_column);
    const u32 more = adapters.count();
    if constexpr (FACTORS == Along::Depth) {
#pragma unroll 1
      for (u32 i = first; i < more; i += distance, step++) add_low_rank(d, adapters.at(i), first_column, step);
    } else {
      u32 kept[parts];
      find_kept(kept, warp_row(task), first_column);
#pragma unroll 1
      for (u32 i = first; i < more; i += distance, step++) {
        add_low_rank_columns(d, adapters.at(i), kept, p.columns - first_column, step);
      }
    }
  }

  /// d += s·T·Bᵀ for a segment's columns.
  GPU_DEVICE void add_low_rank(float (&d)[COLUMNS / 2], const LowRankStep& low, u32 first_column, u32 step) const {
    const LoraSegment& segment = p.segments[low.segment];
    const u32 begin = gpu::max(segment.begin, first_column) - first_column, end = segment.end - first_column;
    const u32 values = low_rank_values(segment, low.k);
    await_full(step);
    if (values == 16) {
      add_values<1>(d, step % stages, begin, end);
    } else if (values == 32) {
      add_values<2>(d, step % stages, begin, end);
    } else {
      add_values<4>(d, step % stages, begin, end);
    }
    release(step);
  }

  /// The number of products is known when compiled, and each group's sums are its own from the copy to the copy back:
  /// otherwise the compiler makes all products of the kernel wait for each other.
  template <u32 K_STEPS>
  GPU_DEVICE void add_values(float (&d)[COLUMNS / 2], u32 stage, u32 begin, u32 end) const {
#pragma unroll
    for (u32 part = 0; part < parts; part++) {
      if (64 * part >= end || 64 * part + 64 <= begin) continue;
      float sum[32];
#pragma unroll
      for (u32 i = 0; i < 32; i++) sum[i] = d[32 * part + i];
      wgmma_hold(sum);
      wgmma_fence();
#pragma unroll
      for (u32 k = 0; k < K_STEPS; k++) {
        const u64 a = left_descriptor(stage, k), b = right_descriptor(stage, 64 * part, k);
        wgmma_m64k16<E, 64, Major::K, Major::K>(sum, a, b, 1);
      }
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_hold(sum);
#pragma unroll
      for (u32 i = 0; i < 32; i++) {
        const u32 column = 64 * part + i / 4 * 8 + lane_id() % 4 * 2 + i % 2;
        if (column >= begin && column < end) d[32 * part + i] = sum[i];
      }
    }
  }

  /// Which of a lane's sums dropout keeps: of 64 columns a word, of which a byte is of 32 columns and a row.
  GPU_DEVICE void find_kept(u32 (&kept)[parts], u32 first_row, u32 first_column) const {
    const bool drops = p.dropout.threshold != 0 && p.segment_count != 0;
#pragma unroll
    for (u32 part = 0; part < parts; part++) {
      kept[part] = drops ? 0 : ~0u;
#pragma unroll 1
      for (u32 i = 0; drops && i < 4; i++) {
        const u32 row = first_row + lane_id() / 4 + 8 * (i % 2), block = (first_column + 64 * part) / 32 + i / 2;
        kept[part] |= tile::kept_of_eight(p.dropout, row, block, lane_id() % 4) << (8 * i);
      }
    }
  }

  /// Of dx: d += s·Q·A in every column, where dropout keeps x.
  GPU_DEVICE void add_low_rank_columns(float (&d)[COLUMNS / 2], const LowRankStep& low, const u32 (&kept)[parts],
                                       u32 columns, u32 step) const {
    const u32 values = low_rank_values(p.segments[low.segment], low.k);
    await_full(step);
    if (values == 16) {
      add_panels<1>(d, step % stages, kept, columns);
    } else if (values == 32) {
      add_panels<2>(d, step % stages, kept, columns);
    } else {
      add_panels<4>(d, step % stages, kept, columns);
    }
    release(step);
  }

  template <u32 K_STEPS>
  GPU_DEVICE void add_panels(float (&d)[COLUMNS / 2], u32 stage, const u32 (&kept)[parts], u32 columns) const {
#pragma unroll
    for (u32 part = 0; part < parts; part++) {
      if (64 * part >= columns) continue;
      float sum[32];
#pragma unroll
      for (u32 i = 0; i < 32; i++) sum[i] = 0.0f;
      wgmma_hold(sum);
      wgmma_fence();
#pragma unroll
      for (u32 k = 0; k < K_STEPS; k++) {
        wgmma_m64k16<E, 64, Major::K, Major::MN>(sum, left_descriptor(stage, k), panel_descriptor(stage, part, k), 1);
      }
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_hold(sum);
#pragma unroll
      for (u32 i = 0; i < 32; i++) {
        const u32 bit = 8 * (i / 16 * 2 + i / 2 % 2) + i / 4 % 4 * 2 + i % 2;
        if (kept[part] >> bit & 1) d[32 * part + i] = gpu::fma(p.dropout.scale, sum[i], d[32 * part + i]);
      }
    }
  }
};

}  // namespace lora
