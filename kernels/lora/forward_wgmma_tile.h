// What the forward kernels on wgmma (sm_90a) share: a ring of stages in shared memory, a warpgroup that fills it, and one
// or two that multiply 64 rows of a tile each.
//
// The copy engine fetches x and W0. A, B and T, whose rows may start anywhere and end anywhere, are gathered by the copying
// warpgroup's threads: of a tile of T half a stage, of a tile of y one stage in depth / 64. T and B follow W0 through the
// ring as so much more depth. They multiply 64 columns at a time, and columns outside the segment get back what they were.
//
// FACTORS says which way A and B lie, as in lora/forward_tile.h: of dx both are panels of 64 columns, like W0 [in, out].
#pragma once

#include <gpu/cluster.h>
#include <gpu/grid.h>
#include <gpu/mbarrier.h>
#include <gpu/tma.h>
#include <gpu/warp.h>
#include <gpu/wgmma.h>
#include <lora/dx.h>
#include <lora/forward.h>
#include <tile/staged.h>

namespace lora {

/// GROUPS warpgroups multiply, the next one copies. A stage is 64 of the depth of 64·GROUPS rows and of COLUMNS columns, and of
/// RIDE rows of A where these ride along (lora/forward_wgmma_ride.h): then it is full when both who fetch say so.
///
/// With CTAS = 2 the CTAs of a cluster fetch half of W0's part each, for both. They take the same steps at the same stages,
/// and a stage is empty when the warpgroups of both have released it.
template <class E, Along WEIGHT, Along FACTORS, u32 GROUPS, u32 COLUMNS, u32 STAGES, u32 CTAS = 1, u32 RIDE = 0>
class ForwardWgmmaTile {
 public:
  static constexpr u32 rows = 64 * GROUPS, depth = 64, stages = STAGES, multiplying = 128 * GROUPS;
  static constexpr u32 row_chunks = depth / 8, row_bytes = 2 * depth;
  static constexpr u32 left_chunks = rows * row_chunks, base_chunks = left_chunks + COLUMNS * row_chunks;
  static constexpr u32 stage_chunks = base_chunks + RIDE * row_chunks, fetchers = RIDE == 0 ? 1 : 2;
  static constexpr u32 t_columns = LORA_FORWARD_T_COLUMNS, parts = COLUMNS / 64;
  static_assert(COLUMNS % 64 == 0 && t_columns == 64, "columns come 64 at a time");

 protected:
  /// `ring` has room for all stages at a multiple of 1024 bytes, `barriers` for two a stage, `word` for one, `factors` for all.
  GPU_DEVICE ForwardWgmmaTile(const LoraForwardTma& params, Chunk* ring, u64* barriers, u64* word,
                              LoraFactors* factors)
      : maps(params),
        p(params.forward),
        ring(ring),
        word(word),
        factors(factors),
        full(shared_address(barriers)),
        empty(full + 8 * stages) {}

  /// By one thread, before anybody uses the ring: a fence and a barrier follow.
  GPU_DEVICE void init_ring() const {
    for (u32 i = 0; i < stages; i++) {
      mbarrier_init(full + 8 * i, fetchers);
      mbarrier_init(empty + 8 * i, GROUPS * CTAS);
    }
  }

  GPU_DEVICE Chunk* left(u32 stage) const { return ring + stage * stage_chunks; }
  GPU_DEVICE Chunk* right(u32 stage) const { return left(stage) + left_chunks; }

  // Barriers that the cluster's other CTA may arrive at.
  static GPU_DEVICE void wait(u32 barrier, u32 parity) {
    if constexpr (CTAS > 1) {
      mbarrier_wait_cluster(barrier, parity);
    } else {
      mbarrier_wait(barrier, parity);
    }
  }
  static GPU_DEVICE void arrive(u32 barrier, u32 rank) {
    if constexpr (CTAS > 1) {
      mbarrier_arrive_cluster(map_shared(barrier, rank));
    } else {
      mbarrier_arrive(barrier);
    }
  }

  static GPU_DEVICE u32 group() { return shuffle(threadIdx.x / 128, 0); }

  /// Steps from `begin` on in a split of the depth.
  GPU_DEVICE u32 steps_of_split(u32 begin, u32 split_depth) const {
    return begin < p.depth ? (gpu::min(split_depth, p.depth - begin) + depth - 1) / depth : 0;
  }
  GPU_DEVICE LowRankSteps<depth> low_rank(u32 first_column) const {
    return LowRankSteps<depth>::template of<FACTORS>(p, first_column, gpu::min(first_column + COLUMNS, p.columns));
  }

  // --- The warpgroup that copies.

  GPU_DEVICE void await_empty(u32 step) const { wait(empty + 8 * (step % stages), step / stages % 2 ^ 1); }

  /// By one thread: x and W0 from depth `k` on. Of the first `ahead` steps W0 is on its way already.
  GPU_DEVICE void base_operands(u32 first_row, u32 first_column, u32 k, u32 steps, u32 step, u32 ahead = 0) const {
#pragma unroll 1
    for (u32 i = 0; i < steps; i++, step++, k += depth) {
      const u32 stage = step % stages;
      if (i >= ahead) {
        await_empty(step);
        fetch_weight(stage, k, first_column);
      }
      fetch_x(stage, k, first_row);
    }
  }

  /// By one thread: W0 of the first steps, as many as the ring takes, which no launch ahead writes. Returns how many.
  GPU_DEVICE u32 weight_ahead(u32 first_column, u32 k, u32 steps) const {
    const u32 ahead = gpu::min(steps, stages);
#pragma unroll 1
    for (u32 i = 0; i < ahead; i++) fetch_weight(i, k + i * depth, first_column);
    return ahead;
  }

  /// With what the stage's barrier waits for: all of x and W0.
  GPU_DEVICE void fetch_weight(u32 stage, u32 k, u32 first_column) const {
    mbarrier_arrive_expect(full + 8 * stage, base_chunks * sizeof(Chunk));
    constexpr u32 share = COLUMNS / CTAS;
    const u32 mine = CTAS > 1 ? cluster_rank() * share : 0;
    if constexpr (WEIGHT == Along::Depth) {
      fetch_box(stage, mine, k, first_column + mine);
    } else {
#pragma unroll
      for (u32 column = 0; column < share; column += 64) {
        fetch_box(stage, mine + column, first_column + mine + column, k);
      }
    }
  }

  /// What goes to the tile's column `column` and the next ones.
  GPU_DEVICE void fetch_box(u32 stage, u32 column, u32 x, u32 y) const {
    const u32 place = shared_address(right(stage) + column * row_chunks), barrier = full + 8 * stage;
    if constexpr (CTAS > 1) {
      tma_load_2d_multicast(place, &maps.weight, barrier, i32(x), i32(y), (1 << CTAS) - 1);
    } else {
      tma_load_2d_constant(place, &maps.weight, barrier, i32(x), i32(y));
    }
  }

  GPU_DEVICE void fetch_x(u32 stage, u32 k, u32 first_row) const {
    tma_load_2d(shared_address(left(stage)), &maps.x, full + 8 * stage, i32(k), i32(first_row));
  }

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

  /// What the warpgroup's threads stored is for wgmma to read: its proxy's fence by each, then one arrival for all.
  GPU_DEVICE void hand_over(u32 stage, bool copies) const {
    fence_proxy_async_shared();
    together();
    if (copies) mbarrier_arrive(full + 8 * stage);
  }

  /// The barrier takes whole warps, of which one has a lane that went its own way.
  static GPU_DEVICE void together() {
    sync_warp();
    sync_named(1, 128);
  }

  // --- The warpgroups that multiply.

  GPU_DEVICE void await_full(u32 step) const { mbarrier_wait(full + 8 * (step % stages), step / stages % 2); }

  /// The products with a stage are done in all of the warpgroup: so says the wait, which all its warps make.
  GPU_DEVICE void release(u32 step) const {
    if (threadIdx.x % 128 != 0) return;
#pragma unroll
    for (u32 rank = 0; rank < CTAS; rank++) arrive(empty + 8 * (step % stages), rank);
  }

  /// This warpgroup's 64 rows of the left operand, 16 of the depth.
  GPU_DEVICE u64 left_descriptor(u32 stage, u32 k) const {
    const u32 address = shared_address(left(stage)) + group() * 64 * row_bytes;
    return wgmma_descriptor(address, 0, 8 * row_bytes) + 2 * k;
  }

  /// Right operand whose rows run along the depth, from row `row` on.
  GPU_DEVICE u64 right_descriptor(u32 stage, u32 row, u32 k) const {
    return wgmma_descriptor(shared_address(right(stage)) + row * row_bytes, 0, 8 * row_bytes) + 2 * k;
  }

  /// The weight: the same, or panels of 64 columns whose rows run across the depth.
  GPU_DEVICE u64 weight_descriptor(u32 stage, u32 k) const {
    if constexpr (WEIGHT == Along::Depth) {
      return right_descriptor(stage, 0, k);
    } else {
      return panel_descriptor(stage, 0, k);
    }
  }

  GPU_DEVICE u64 panel_descriptor(u32 stage, u32 panel, u32 k) const {
    const u32 address = shared_address(right(stage)) + panel * 64 * row_bytes;
    return wgmma_descriptor(address, 64 * row_bytes, 8 * row_bytes) + k * (16 * row_bytes / 16);
  }

  /// A warp's first row of y or T.
  static GPU_DEVICE u32 warp_row(const ForwardTask& task) {
    return task.row_tile * rows + 64 * group() + warp_id() % 4 * 16;
  }

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
    const auto shared_tile = SharedTile::of_t(p, task, fours * multiplying);
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

  /// d = x·W0ᵀ over `steps` steps, at least one.
  GPU_DEVICE void multiply_base(float (&d)[COLUMNS / 2], u32 steps, u32& step) const {
#pragma unroll 1
    for (u32 i = 0; i < steps; i++, step++) {
      await_full(step);
      wgmma_fence();
#pragma unroll
      for (u32 k = 0; k < depth / 16; k++) {
        constexpr Major major = WEIGHT == Along::Depth ? Major::K : Major::MN;
        const u64 a = left_descriptor(step % stages, k), b = weight_descriptor(step % stages, k);
        wgmma_m64k16<E, COLUMNS, Major::K, major>(d, a, b, i != 0 || k != 0);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (i != 0) release(step - 1);
    }
    wgmma_wait<0>();
    wgmma_hold(d);
    release(step - 1);
  }

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

  const LoraForwardTma& maps;
  const LoraForward& p;
  Chunk* ring;
  u64* word;
  SegmentFactors factors;
  u32 full, empty;
};

}  // namespace lora
