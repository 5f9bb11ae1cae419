// lora_forward on wgmma (sm_90a).
//
// Who does what. As many CTAs as the device has SMs draw tasks until none is left. In each, two warpgroups multiply 64 rows
// of a tile of 128 × COLUMNS each; a third fills a ring of stages ahead of them, across the borders of tasks. The copy
// engine fetches x and W0. A, B and T, whose rows may start anywhere and end anywhere, are gathered by the third
// warpgroup's threads: of a tile of T half a stage, of a tile of y one stage in depth / 64.
//
// A tile of T is 128 × 64. T and B follow W0 through the ring as so much more depth. They multiply 64 columns at a time,
// and columns outside the segment get back what they were.
//
// FACTORS says which way A and B lie, as in lora/forward_tile.h: of dx both are panels of 64 columns, like W0 [in, out].
//
// Draws. One thread draws and passes each task on in one of two slots. Tickets grow along a CTA's tasks, and tiles of T
// have the lowest of all: whoever waits for one waits for a CTA that is at work on it, or on another before it.
//
// Shared memory: 192 KiB of stages, 20 KiB for the sums on their way out, the barriers.
#pragma once

#include <gpu/mbarrier.h>
#include <gpu/registers.h>
#include <gpu/tma.h>
#include <gpu/wgmma.h>
#include <lora/dx.h>
#include <lora/forward.h>
#include <tile/epilogue.h>
#include <tile/staged.h>
#include <tile/warp_mma.h>

namespace lora {

template <class E, Along WEIGHT, Along FACTORS, u32 COLUMNS>
class ForwardWgmma {
 public:
  static constexpr u32 rows = 128, depth = 64, stages = COLUMNS == 256 ? 4 : 6;
  static constexpr u32 row_chunks = depth / 8, row_bytes = 2 * depth;
  static constexpr u32 left_chunks = rows * row_chunks, stage_chunks = left_chunks + COLUMNS * row_chunks;
  static constexpr u32 t_columns = LORA_FORWARD_T_COLUMNS, parts = COLUMNS / 64;
  static constexpr u32 warps = LORA_FORWARD_WGMMA_THREADS / warp_size;
  /// Columns of the sums that a warp sends out at a time.
  static constexpr u32 slab_columns = 32, slab_stride = slab_columns + 8;

  GPU_DEVICE explicit ForwardWgmma(const LoraForwardTma& params)
      : maps(params),
        p(params.forward),
        shared(),
        ring(shared.take<Chunk, 1024>(stages * stage_chunks)),
        slabs(shared.take<float, 128>(8 * 16 * slab_stride)),
        barriers(shared.take<u64>(2 * stages + 4)),
        words(shared.take<u64>(3)),
        full(shared_address(barriers)),
        empty(full + 8 * stages),
        drawn(empty + 8 * stages),
        taken(drawn + 16) {}

  GPU_DEVICE void run() {
    if (threadIdx.x == 0) {
      for (u32 i = 0; i < stages; i++) {
        mbarrier_init(full + 8 * i, 1);
        mbarrier_init(empty + 8 * i, 2);
      }
      for (u32 i = 0; i < 2; i++) {
        mbarrier_init(drawn + 8 * i, 1);
        mbarrier_init(taken + 8 * i, warps);
      }
      fence_mbarrier_init();
    }
    sync_block();
    if (group() == 2) {
      decrease_registers<72>();
      produce();
    } else {
      increase_registers<216>();
      consume();
    }
  }

 private:
  GPU_DEVICE Chunk* left(u32 stage) const { return ring + stage * stage_chunks; }
  GPU_DEVICE Chunk* right(u32 stage) const { return left(stage) + left_chunks; }
  GPU_DEVICE u32 base_steps() const { return (p.depth + depth - 1) / depth; }
  /// Steps of a split of a tile of T.
  GPU_DEVICE u32 t_steps(const ForwardTask& task) const {
    const u32 begin = task.split * p.t_split_depth;
    return (gpu::min(p.t_split_depth, p.depth - begin) + depth - 1) / depth;
  }
  GPU_DEVICE LowRankSteps<depth> low_rank(u32 first_column) const {
    return LowRankSteps<depth>::template of<FACTORS>(p, first_column, gpu::min(first_column + COLUMNS, p.columns));
  }

  /// The round-th task of this CTA, or false when there is none. All warps call it, one after the other or side by side.
  GPU_DEVICE bool next(u32 round, ForwardTask& task) {
    const u32 tasks = p.row_tiles * (p.t_tiles * p.t_splits + p.column_tiles);
    u32 number = blockIdx.x + round * gridDim.x, epoch = 0;
    if (p.t_tiles != 0) {
      const u32 slot = round % 2, parity = round / 2 % 2;
      if (threadIdx.x == 256) {
        mbarrier_wait(taken + 8 * slot, parity ^ 1);
        const u64 word = fetch_add_relaxed(p.ticket, u64(1));
        if (u32(word) == tasks + gridDim.x - 1) store_relaxed(p.ticket, u64(u32(word >> 32) + 1) << 32);
        words[slot] = word;
        mbarrier_arrive(drawn + 8 * slot);
      }
      sync_warp();
      mbarrier_wait(drawn + 8 * slot, parity);
      sync_warp();  // lane 0 speaks for all: none of them may still wait
      u64 word = 0;
      if (lane_id() == 0) {
        word = words[slot];
        mbarrier_arrive(taken + 8 * slot);
      }
      word = shuffle(word, 0);
      number = u32(word);
      epoch = u32(word >> 32) + 1;
    }
    if (number >= tasks) return false;
    task = ForwardTask::of_number(p, number, epoch);
    return true;
  }

  // --- The third warpgroup.

  GPU_DEVICE void produce() {
    const bool copies = warp_id() == 8 && elect_one();
    u32 step = 0;
    ForwardTask task;
    for (u32 round = 0; next(round, task); round++) {
      const u32 first_row = task.row_tile * rows;
      if (task.is_t) {
        if constexpr (FACTORS == Along::Depth) {
          shrink_operands(task, first_row, copies, step);
        } else {
          shrink_columns(task, first_row, copies, step);
        }
        continue;
      }
      const u32 first_column = task.column_tile * COLUMNS;
      if (copies) base_operands(first_row, first_column, step);
      step += base_steps();
      const auto adapters = low_rank(first_column);
      const u32 more = adapters.count();
      // A barrier's parity tells a thread only whether it is one phase ahead: nobody may be two.
      if (more != 0) together();
      for (u32 i = 0; i < more; i++, step++) low_rank_operands(task, adapters.at(i), first_row, first_column, copies, step);
    }
  }

  GPU_DEVICE void await_empty(u32 step) const { mbarrier_wait(empty + 8 * (step % stages), step / stages % 2 ^ 1); }

  /// By one thread.
  GPU_DEVICE void base_operands(u32 first_row, u32 first_column, u32 step) const {
    const u32 steps = base_steps();
#pragma unroll 1
    for (u32 i = 0; i < steps; i++, step++) {
      const u32 stage = step % stages, barrier = full + 8 * stage, k = i * depth;
      await_empty(step);
      mbarrier_arrive_expect(barrier, stage_chunks * sizeof(Chunk));
      fetch_x(stage, k, first_row);
      if constexpr (WEIGHT == Along::Depth) {
        tma_load_2d(shared_address(right(stage)), &maps.weight, barrier, i32(k), i32(first_column));
      } else {
#pragma unroll
        for (u32 part = 0; part < parts; part++) {
          const u32 place = shared_address(right(stage) + part * 64 * row_chunks);
          tma_load_2d(place, &maps.weight, barrier, i32(first_column + 64 * part), i32(k));
        }
      }
    }
  }

  GPU_DEVICE void fetch_x(u32 stage, u32 k, u32 first_row) const {
    tma_load_2d(shared_address(left(stage)), &maps.x, full + 8 * stage, i32(k), i32(first_row));
  }

  /// By all threads of the warpgroup, with A always one step ahead in registers.
  GPU_DEVICE void shrink_operands(const ForwardTask& task, u32 first_row, bool copies, u32& step) const {
    constexpr u32 count = t_columns * row_chunks / 128;
    const u32 thread = threadIdx.x % 128, row = thread / row_chunks, chunk = thread % row_chunks;
    const E* a[count];
#pragma unroll
    for (u32 i = 0; i < count; i++) a[i] = a_row<E>(p, task.column_tile * t_columns + row + i * (128 / row_chunks));
    Chunk ahead[count];
    const auto load_a = [&](u32 k) {
#pragma unroll
      for (u32 i = 0; i < count; i++) {
        ahead[i] = tile::zero_chunk;
        if (a[i] && k < p.depth) ahead[i] = load_constant(reinterpret_cast<const Chunk*>(a[i] + k));
      }
    };
    const u32 begin = task.split * p.t_split_depth, steps = t_steps(task);
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
        fetch_x(stage, begin + j * depth, first_row);
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
  GPU_DEVICE void shrink_columns(const ForwardTask& task, u32 first_row, bool copies, u32& step) const {
    constexpr u32 chunks = t_columns / 8, count = depth * chunks / 128;
    const u32 thread = threadIdx.x % 128, row = thread / chunks, chunk = thread % chunks;
    const ChunkOfB<E> b(p, task.column_tile * t_columns + 8 * chunk);
    const bool loads_ahead = b.is_aligned();
    Chunk ahead[count];
    const auto load_b = [&](u32 k) {
#pragma unroll
      for (u32 i = 0; i < count; i++) ahead[i] = b.template load<true>(k + row + i * (128 / chunks));
    };
    const u32 begin = task.split * p.t_split_depth, steps = t_steps(task);
    if (loads_ahead) load_b(begin);
#pragma unroll 1
    for (u32 j = 0; j < steps; j++) {
      const u32 k = begin + j * depth, stage = step % stages;
      if (has_rows<depth>(p, task.column_tile, k)) {
        await_empty(step);
        if (copies) {
          mbarrier_expect(full + 8 * stage, left_chunks * sizeof(Chunk));
          fetch_x(stage, k, first_row);
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
  GPU_DEVICE void low_rank_operands(const ForwardTask& task, const LowRankStep& low, u32 first_row, u32 first_column,
                                    bool copies, u32 step) const {
    const LoraSegment& segment = p.segments[low.segment];
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
      store_b(segment, low.k, first_column, chunks, stage);
    } else {
      store_a(segment, low.k, first_column, 8 * chunks, stage);
    }
    hand_over(stage, copies);
  }

  /// `chunks` of a segment's rank from `k` on, for every column of a tile.
  GPU_DEVICE void store_b(const LoraSegment& segment, u32 k, u32 first_column, u32 chunks, u32 stage) const {
    const bool b_aligned = tile::rows_are_aligned<E>(segment.b, segment.b_stride) && segment.rank % 8 == 0;
#pragma unroll 1
    for (u32 i = threadIdx.x % 128; i < COLUMNS * chunks; i += 128) {
      const u32 row = i / chunks, chunk = i % chunks, column = first_column + row, first = k + 8 * chunk;
      Chunk b = tile::zero_chunk;
      if (column >= segment.begin && column < segment.end) {
        const E* source = static_cast<const E*>(segment.b) + u64(column - segment.begin) * segment.b_stride;
        b = b_aligned ? tile::load_weight<E, true>(source, first, segment.rank)
                      : tile::load_weight<E, false>(source, first, segment.rank);
      }
      store_shared(right(stage) + tile::swizzled<row_chunks>(row, chunk), b);
    }
  }

  /// The same of dx: `values` of the rank, a row of A each, in panels of 64 columns.
  GPU_DEVICE void store_a(const LoraSegment& segment, u32 k, u32 first_column, u32 values, u32 stage) const {
    constexpr u32 chunks = COLUMNS / 8;
    const bool a_aligned = a_is_aligned<E>(p, segment);
#pragma unroll 1
    for (u32 i = threadIdx.x % 128; i < values * chunks; i += 128) {
      const u32 row = i / chunks, chunk = i % chunks, column = first_column + 8 * chunk;
      const E* source = row_of_a<E>(segment, k + row);
      const u32 end = source != nullptr ? p.columns : 0;
      const Chunk a = a_aligned ? tile::load_weight<E, true>(source, column, end)
                                : tile::load_weight<E, false>(source, column, end);
      store_shared(right(stage) + chunk / 8 * 64 * row_chunks + tile::swizzled<row_chunks>(row, chunk % 8), a);
    }
  }

  /// Values of a segment's rank that one stage holds from `k` on, zeros behind the last among them.
  static GPU_DEVICE u32 low_rank_values(const LoraSegment& segment, u32 k) {
    const u32 left = segment.rank - k;
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

  GPU_DEVICE void consume() {
    u32 step = 0;
    ForwardTask task;
    for (u32 round = 0; next(round, task); round++) {
      const u32 first_row = task.row_tile * rows + 64 * group() + warp_id() % 4 * 16;
      if (task.is_t) {
        shrink(task, first_row, step);
      } else {
        multiply(task.column_tile * COLUMNS, first_row, step);
      }
    }
  }

  static GPU_DEVICE u32 group() { return shuffle(threadIdx.x / 128, 0); }

  GPU_DEVICE void await_full(u32 step) const { mbarrier_wait(full + 8 * (step % stages), step / stages % 2); }

  /// The products with a stage are done in all of the warpgroup: so says the wait, which all its warps make.
  GPU_DEVICE void release(u32 step) const {
    if (threadIdx.x % 128 == 0) mbarrier_arrive(empty + 8 * (step % stages));
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

  /// The products of a tile of T.
  GPU_DEVICE void multiply_rows(float (&d)[t_columns / 2], const ForwardTask& task, u32& step) const {
    const u32 steps = t_steps(task);
    u32 k_begin = task.split * p.t_split_depth;
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
    release(step - 1);
  }

  GPU_DEVICE void shrink(const ForwardTask& task, u32 first_row, u32& step) {
    float d[t_columns / 2];
    if constexpr (FACTORS == Along::Depth) {
      multiply_rows(d, task, step);
    } else {
      multiply_columns(d, task, step);
    }

    const u32 first = task.column_tile * t_columns, columns = gpu::min(t_columns, p.t_stride - first);
    if (p.t_splits != 1 && !add_splits(d, task, first_row, columns)) return;
#pragma unroll
    for (u32 i = 0; i < t_columns / 2; i += 2) {
      const u32 row = first_row + lane_id() / 4 + 8 * (i / 2 % 2), column = i / 4 * 8 + lane_id() % 4 * 2;
      if (row < p.tokens && column < columns) store_t<E, FACTORS>(p, row, first + column, d[i], d[i + 1]);
    }
    sync_named(2, 256);
    if (threadIdx.x == 0) store_release(p.flags + task.row_tile * p.t_tiles + task.column_tile, task.epoch);
  }

  /// The products of a tile of dx's Q: zeros where none of its segments has rows.
  GPU_DEVICE void multiply_columns(float (&d)[t_columns / 2], const ForwardTask& task, u32& step) const {
#pragma unroll
    for (u32 i = 0; i < t_columns / 2; i++) d[i] = 0.0f;
    wgmma_hold(d);
    const u32 begin = task.split * p.t_split_depth, steps = t_steps(task);
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
  GPU_DEVICE bool add_splits(float (&d)[t_columns / 2], const ForwardTask& task, u32 warp_row, u32 columns) const {
    constexpr u32 threads = 256, fours = t_columns / 8;
    const auto shared_tile = SharedTile::of_t(p, task, fours * threads);
    const auto four_of = [&](u32 i) -> float* { return &d[4 * i]; };
    const auto wanted = [&](u32 i) { return warp_row < p.tokens && 8 * i < columns; };
    shared_tile.leave<fours>(threads, four_of, wanted);
    sync_named(2, threads);
    if (threadIdx.x == 0) words[2] = shared_tile.arrive();
    sync_named(2, threads);
    if (words[2] == 0) return false;
    shared_tile.add_up<fours>(threads, four_of, wanted);
    return true;
  }

  GPU_DEVICE void multiply(u32 first_column, u32 first_row, u32& step) {
    // Kept as the instruction for all columns numbers them: 32 registers for each 64.
    float d[COLUMNS / 2];
    const u32 steps = base_steps();
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

    const auto adapters = low_rank(first_column);
    const u32 more = adapters.count();
    if constexpr (FACTORS == Along::Depth) {
#pragma unroll 1
      for (u32 i = 0; i < more; i++, step++) add_low_rank(d, adapters.at(i), first_column, step);
    } else {
      u32 kept[parts];
      find_kept(kept, first_row, first_column);
#pragma unroll 1
      for (u32 i = 0; i < more; i++, step++) add_low_rank_columns(d, adapters.at(i), kept, p.columns - first_column, step);
    }
    leave(d, first_row, first_column);
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

  /// Stores a warp's 16 rows through its slab, to leave in whole chunks.
  GPU_DEVICE void leave(const float (&d)[COLUMNS / 2], u32 first_row, u32 first_column) const {
    constexpr u32 chunks = slab_columns / 8;
    float* slab = slabs + warp_id() * 16 * slab_stride;
    const tile::Epilogue<E> epilogue(p);
#pragma unroll
    for (u32 first = 0; first < COLUMNS; first += slab_columns) {
#pragma unroll
      for (u32 i = 0; i < slab_columns / 2; i++) {
        slab[(lane_id() / 4 + 8 * (i / 2 % 2)) * slab_stride + i / 4 * 8 + lane_id() % 4 * 2 + i % 2] = d[first / 2 + i];
      }
      sync_warp();
#pragma unroll
      for (u32 i = lane_id(); i < 16 * chunks; i += warp_size) {
        const Chunk* place = reinterpret_cast<const Chunk*>(slab + i / chunks * slab_stride + i % chunks * 8);
        const Chunk low = load_shared(place), high = load_shared(place + 1);
        float value[8];
#pragma unroll
        for (u32 e = 0; e < 8; e++) value[e] = from_bits(e < 4 ? low.word[e % 4] : high.word[e % 4]);
        epilogue.store_chunk(value, first_row + i / chunks, first_column + first + i % chunks * 8);
      }
      sync_warp();
    }
  }

  const LoraForwardTma& maps;
  const LoraForward& p;
  SharedMemory shared;
  Chunk* ring;
  float* slabs;
  u64* barriers;
  u64* words;
  u32 full, empty, drawn, taken;
};

}  // namespace lora
