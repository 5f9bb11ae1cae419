// Tiles of T on wgmma (sm_90a): A through the ring beside x, the sums to the workspace, the flag.
//
// A's rows may start and end anywhere: the copying warpgroup's threads gather them, half a stage a step, while the copy engine
// fetches x. In dx it is B's rows, which lie across the depth, and a tile of Q.
#pragma once

#include <lora/dx.h>
#include <lora/forward_wgmma_ring.h>

namespace lora {

/// As the ring it uses.
template <class E, Along WEIGHT, Along FACTORS, u32 GROUPS, u32 COLUMNS, u32 STAGES, u32 CTAS = 1, u32 RIDE = 0>
class ForwardWgmmaShrink : public ForwardWgmmaRing<E, WEIGHT, FACTORS, GROUPS, COLUMNS, STAGES, CTAS, RIDE> {
 protected:
  using Ring = ForwardWgmmaRing<E, WEIGHT, FACTORS, GROUPS, COLUMNS, STAGES, CTAS, RIDE>;
  using Ring::rows, Ring::depth, Ring::stages, Ring::multiplying, Ring::row_chunks, Ring::left_chunks;
  using Ring::t_columns, Ring::left, Ring::right, Ring::group, Ring::steps_of_split, Ring::await_empty, Ring::fetch_x;
  using Ring::hand_over, Ring::await_full, Ring::release, Ring::left_descriptor, Ring::right_descriptor;
  using Ring::panel_descriptor, Ring::warp_row, Ring::p, Ring::word, Ring::factors, Ring::full;
  using Ring::Ring;

  // --- The warpgroup that copies.

  /// What a tile of T is made from, by all threads of the warpgroup.
  GPU_DEVICE void shrink_operands(const ForwardTask& task, bool copies, u32& step) const {
    if constexpr (FACTORS == Along::Depth) {
      shrink_rows(task, copies, step);
    } else {
      shrink_columns(task, copies, step);
    }
  }

  /// With A always one step ahead in registers.
  GPU_DEVICE void shrink_rows(const ForwardTask& task, bool copies, u32& step) const {
    constexpr u32 count = t_columns * row_chunks / 128;
    const u32 thread = threadIdx.x % 128, row = thread / row_chunks, chunk = thread % row_chunks;
    const E* a[count];
#pragma unroll
    for (u32 i = 0; i < count; i++) a[i] = a_row<E>(p, factors, task.column_tile * t_columns + row + i * (128 / row_chunks));
    Chunk ahead[count];
    const auto load_a = [&](u32 k) {
#pragma unroll
      for (u32 i = 0; i < count; i++) {
        ahead[i] = tile::zero_chunk;
        if (a[i] && k < p.depth) ahead[i] = load_constant(reinterpret_cast<const Chunk*>(a[i] + k));
      }
    };
    const u32 begin = task.split * p.t_split_depth, steps = steps_of_split(begin, p.t_split_depth);
    load_a(begin + 8 * chunk);
#pragma unroll 1
    for (u32 j = 0; j < steps; j++, step++) {
      const u32 stage = step % stages;
      Chunk now[count];
#pragma unroll
      for (u32 i = 0; i < count; i++) now[i] = ahead[i];
      load_a(begin + (j + 1) * depth + 8 * chunk);
      await_empty(step);
      if (copies) {
        mbarrier_expect(full + 8 * stage, left_chunks * sizeof(Chunk));
        fetch_x(stage, begin + j * depth, task.row_tile * rows);
      }
#pragma unroll
      for (u32 i = 0; i < count; i++) {
        store_shared(right(stage) + tile::swizzled<row_chunks>(row + i * (128 / row_chunks), chunk), now[i]);
      }
      hand_over(stage, copies);
    }
  }

  /// The same of dx: B, which lies across the depth, and is one step ahead only where its rows are aligned. Steps without
  /// rows of it are left out.
  GPU_DEVICE void shrink_columns(const ForwardTask& task, bool copies, u32& step) const {
    constexpr u32 chunks = t_columns / 8, count = depth * chunks / 128;
    const u32 thread = threadIdx.x % 128, row = thread / chunks, chunk = thread % chunks;
    const ChunkOfB<E> b(p, task.column_tile * t_columns + 8 * chunk);
    const bool loads_ahead = b.is_aligned();
    Chunk ahead[count];
    const auto load_b = [&](u32 k) {
#pragma unroll
      for (u32 i = 0; i < count; i++) ahead[i] = b.template load<true>(k + row + i * (128 / chunks));
    };
    const u32 begin = task.split * p.t_split_depth, steps = steps_of_split(begin, p.t_split_depth);
    if (loads_ahead) load_b(begin);
#pragma unroll 1
    for (u32 j = 0; j < steps; j++) {
      const u32 k = begin + j * depth, stage = step % stages;
      if (has_rows<depth>(p, task.column_tile, k)) {
        await_empty(step);
        if (copies) {
          mbarrier_expect(full + 8 * stage, left_chunks * sizeof(Chunk));
          fetch_x(stage, k, task.row_tile * rows);
        }
        if (loads_ahead) {
#pragma unroll
          for (u32 i = 0; i < count; i++) {
            store_shared(right(stage) + tile::swizzled<chunks>(row + i * (128 / chunks), chunk), ahead[i]);
          }
        } else {
#pragma unroll 1
          for (u32 i = row; i < depth; i += 128 / chunks) {
            store_shared(right(stage) + tile::swizzled<chunks>(i, chunk), b.template load<false>(k + i));
          }
        }
        hand_over(stage, copies);
        step++;
      }
      if (loads_ahead) load_b(k + depth);
    }
  }

  // --- The warpgroups that multiply.

  /// A tile of T, or this CTA's split of one, which MAY_BE_EMPTY.
  template <bool MAY_BE_EMPTY>
  GPU_DEVICE void shrink(const ForwardTask& task, u32& step) const {
    float d[t_columns / 2];
    if constexpr (FACTORS == Along::Depth) {
      multiply_rows<MAY_BE_EMPTY>(d, task, step);
    } else {
      multiply_columns(d, task, step);
    }

    const u32 first = task.column_tile * t_columns, columns = gpu::min(t_columns, p.t_stride - first);
    const u32 first_row = warp_row(task);
    if (p.t_splits != 1 && !add_splits(d, task, first_row, columns)) return;
#pragma unroll
    for (u32 i = 0; i < t_columns / 2; i += 2) {
      const u32 row = first_row + lane_id() / 4 + 8 * (i / 2 % 2), column = i / 4 * 8 + lane_id() % 4 * 2;
      if (row < p.tokens && column < columns) store_t<E, FACTORS>(p, factors, row, first + column, d[i], d[i + 1]);
    }
    sync_named(2, multiplying);
    if (threadIdx.x == 0) store_release(p.flags + task.row_tile * p.t_tiles + task.column_tile, task.epoch);
  }

  /// The products of a tile of T.
  template <bool MAY_BE_EMPTY>
  GPU_DEVICE void multiply_rows(float (&d)[t_columns / 2], const ForwardTask& task, u32& step) const {
    u32 k_begin = task.split * p.t_split_depth;
    const u32 steps = steps_of_split(k_begin, p.t_split_depth);
#pragma unroll 1
    for (u32 i = 0; i < steps; i++, step++, k_begin += depth) {
      await_full(step);
      Chunk* mine = left(step % stages) + 64 * group() * row_chunks;
      const u32 group_row = task.row_tile * rows + 64 * group();
      if (drop_out_stage<E, 64, depth>(p, mine, group_row, k_begin, threadIdx.x % 128, 128)) {
        fence_proxy_async_shared();
        sync_named(3 + group(), 128);
      }
      wgmma_fence();
#pragma unroll
      for (u32 k = 0; k < depth / 16; k++) {
        const u64 a = left_descriptor(step % stages, k), b = right_descriptor(step % stages, 0, k);
        wgmma_m64k16<E, t_columns, Major::K, Major::K>(d, a, b, i != 0 || k != 0);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (i != 0) release(step - 1);
    }
    wgmma_wait<0>();
    wgmma_hold(d);
    if (!MAY_BE_EMPTY || steps != 0) {
      release(step - 1);
    } else {
#pragma unroll
      for (u32 i = 0; i < t_columns / 2; i++) d[i] = 0.0f;
    }
  }

  /// The products of a tile of dx's Q: zeros where none of its segments has rows.
  GPU_DEVICE void multiply_columns(float (&d)[t_columns / 2], const ForwardTask& task, u32& step) const {
#pragma unroll
    for (u32 i = 0; i < t_columns / 2; i++) d[i] = 0.0f;
    wgmma_hold(d);
    const u32 begin = task.split * p.t_split_depth, steps = steps_of_split(begin, p.t_split_depth);
    bool reads = false;
#pragma unroll 1
    for (u32 i = 0; i < steps; i++) {
      if (!has_rows<depth>(p, task.column_tile, begin + i * depth)) continue;
      await_full(step);
      wgmma_fence();
#pragma unroll
      for (u32 k = 0; k < depth / 16; k++) {
        const u64 a = left_descriptor(step % stages, k), b = panel_descriptor(step % stages, 0, k);
        wgmma_m64k16<E, t_columns, Major::K, Major::MN>(d, a, b, 1);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (reads) release(step - 1);
      reads = true;
      step++;
    }
    wgmma_wait<0>();
    wgmma_hold(d);
    if (reads) release(step - 1);
  }

  /// Leaves this CTA's sums of a tile of T in the workspace; the last of the tile's CTAs takes all of them. Whether this CTA
  /// is that one. Sums of rows and columns that nobody will store stay out.
  GPU_DEVICE bool add_splits(float (&d)[t_columns / 2], const ForwardTask& task, u32 first_row, u32 columns) const {
    constexpr u32 fours = t_columns / 8;
    const SharedTile shared_tile = SharedTile::of_t(p, task, fours * multiplying);
    const auto four_of = [&](u32 i) -> float* { return &d[4 * i]; };
    const auto wanted = [&](u32 i) { return first_row < p.tokens && 8 * i < columns; };
    shared_tile.leave<fours>(multiplying, four_of, wanted);
    sync_named(2, multiplying);
    if (threadIdx.x == 0) *word = shared_tile.arrive();
    sync_named(2, multiplying);
    if (*word == 0) return false;
    shared_tile.add_up<fours>(multiplying, four_of, wanted);
    return true;
  }
};

}  // namespace lora
