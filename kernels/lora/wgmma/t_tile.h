// A T tile, x·Aᵀ, on wgmma (sm_90a): A goes through the ring beside x, the sums of splits through the workspace; then s·T is
// stored and the flag is set.
//
// A's rows belong to several adapters: the producer warpgroup's threads load them into registers one step ahead and store
// them in the ring, while TMA copies x. In dx it is a Q tile, dy·B: B is MN-major and its rows may start anywhere; if they
// are not aligned to 16 bytes they are not loaded ahead.
#pragma once

#include <lora/dx.h>
#include <lora/wgmma/pipeline.h>

namespace lora {

// --- Producer.

/// A of a tile of T, one step ahead in registers, and x.
template <class C>
GPU_DEVICE void load_a_and_x(const Pipeline<C>& pipe, const SegmentFactors& factors, const ForwardTask& task, bool copies,
                             typename Pipeline<C>::Position& at) {
  using E = typename C::E;
  const LoraForward& p = pipe.p;
  constexpr u32 count = C::t_columns * C::row_chunks / 128, rows_apart = 128 / C::row_chunks;
  const u32 thread = threadIdx.x % 128, row = thread / C::row_chunks, chunk = thread % C::row_chunks;
  const E* a[count];
#pragma unroll
  for (u32 i = 0; i < count; i++) a[i] = a_row<E>(p, factors, task.column_tile * C::t_columns + row + i * rows_apart);
  Chunk ahead[count];
  const auto load_a = [&](u32 k) {
#pragma unroll
    for (u32 i = 0; i < count; i++) {
      ahead[i] = tile::zero_chunk;
      if (a[i] && k < p.depth) ahead[i] = load_constant(reinterpret_cast<const Chunk*>(a[i] + k));
    }
  };
  const u32 begin = task.split * p.t_split_depth, steps = pipe.steps_of_split(begin, p.t_split_depth);
  load_a(begin + 8 * chunk);
#pragma unroll 1
  for (u32 j = 0; j < steps; j++) {
    Chunk now[count];
#pragma unroll
    for (u32 i = 0; i < count; i++) now[i] = ahead[i];
    load_a(begin + (j + 1) * C::depth + 8 * chunk);
    pipe.await_empty(at);
    if (copies) pipe.fetch_x_alone(at.stage(), begin + j * C::depth, task.row_tile * C::rows);
#pragma unroll
    for (u32 i = 0; i < count; i++) {
      store_shared(pipe.right(at.stage()) + tile::swizzled<C::row_chunks>(row + i * rows_apart, chunk), now[i]);
    }
    pipe.commit_stores(at.stage(), copies);
    at.advance();
  }
}

/// B of a tile of Q, one step ahead in registers where its rows are aligned, and dy. Steps in which B has no rows are left out.
template <class C>
GPU_DEVICE void load_b_and_dy(const Pipeline<C>& pipe, const ForwardTask& task, bool copies, typename Pipeline<C>::Position& at) {
  const LoraForward& p = pipe.p;
  constexpr u32 chunks = C::t_columns / 8, count = C::depth * chunks / 128, rows_apart = 128 / chunks;
  const u32 thread = threadIdx.x % 128, row = thread / chunks, chunk = thread % chunks;
  const ChunkOfB<typename C::E> b(p, task.column_tile * C::t_columns + 8 * chunk);
  const bool loads_ahead = b.is_aligned();
  Chunk ahead[count];
  const auto load_b = [&](u32 k) {
#pragma unroll
    for (u32 i = 0; i < count; i++) ahead[i] = b.template load<true>(k + row + i * rows_apart);
  };
  const u32 begin = task.split * p.t_split_depth, steps = pipe.steps_of_split(begin, p.t_split_depth);
  if (loads_ahead) load_b(begin);
#pragma unroll 1
  for (u32 j = 0; j < steps; j++) {
    const u32 k = begin + j * C::depth;
    if (has_rows<C::depth>(p, task.column_tile, k)) {
      pipe.await_empty(at);
      if (copies) pipe.fetch_x_alone(at.stage(), k, task.row_tile * C::rows);
      if (loads_ahead) {
#pragma unroll
        for (u32 i = 0; i < count; i++) {
          store_shared(pipe.right(at.stage()) + tile::swizzled<chunks>(row + i * rows_apart, chunk), ahead[i]);
        }
      } else {
#pragma unroll 1
        for (u32 i = row; i < C::depth; i += rows_apart) {
          // The compiler must not see that the column is the same each time: it would keep what each of the chunk's elements
          // needs in registers across all steps, and spill them, since a producer has 72.
          u32 column[1] = {task.column_tile * C::t_columns + 8 * chunk};
          wgmma_fence_operands(column);
          const ChunkOfB<typename C::E> same(p, column[0]);
          store_shared(pipe.right(at.stage()) + tile::swizzled<chunks>(i, chunk), same.template load<false>(k + i));
        }
      }
      pipe.commit_stores(at.stage(), copies);
      at.advance();
    }
    if (loads_ahead) load_b(k + C::depth);
  }
}

/// The operands of a tile of T, by all threads of the producer warpgroup; one of them `copies`.
template <class C>
GPU_DEVICE void load_t_operands(const Pipeline<C>& pipe, const SegmentFactors& factors, const ForwardTask& task, bool copies,
                                typename Pipeline<C>::Position& at) {
  if constexpr (C::factors == Major::K) {
    load_a_and_x(pipe, factors, task, copies, at);
  } else {
    load_b_and_dy(pipe, task, copies, at);
  }
}

// --- Consumers.

/// d = x·Aᵀ over a split of the depth, which MAY_BE_EMPTY. Dropout zeroes x in its stage first.
template <class C, bool MAY_BE_EMPTY>
GPU_DEVICE void multiply_x_a(const Pipeline<C>& pipe, float (&d)[C::t_columns / 2], const ForwardTask& task,
                             typename Pipeline<C>::Position& at) {
  using E = typename C::E;
  const LoraForward& p = pipe.p;
  u32 k_begin = task.split * p.t_split_depth;
  const u32 steps = pipe.steps_of_split(k_begin, p.t_split_depth);
#pragma unroll 1
  for (u32 i = 0; i < steps; i++, k_begin += C::depth) {
    pipe.await_full(at);
    Chunk* mine = pipe.left(at.stage()) + 64 * warpgroup() * C::row_chunks;
    const u32 group_row = task.row_tile * C::rows + 64 * warpgroup();
    if (drop_out_stage<E, 64, C::depth>(p, mine, group_row, k_begin, threadIdx.x % 128, 128)) {
      fence_proxy_async_shared();
      sync_named(NamedBarrier::stage_of_group + warpgroup(), 128);
    }
    wgmma_fence();
#pragma unroll
    for (u32 k = 0; k < C::depth / 16; k++) {
      const u64 a = pipe.left_descriptor(at.stage(), k), b = pipe.right_descriptor(at.stage(), 0, k);
      wgmma_m64k16<E, C::t_columns, Major::K, Major::K>(d, a, b, i != 0 || k != 0);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (i != 0) pipe.release(at.previous_stage());
    at.advance();
  }
  wgmma_wait<0>();
  wgmma_fence_operands(d);
  if (!MAY_BE_EMPTY || steps != 0) {
    pipe.release(at.previous_stage());
  } else {
#pragma unroll
    for (u32 i = 0; i < C::t_columns / 2; i++) d[i] = 0.0f;
  }
}

/// d = dy·B over a split of the depth: zeros where B has no rows in it.
template <class C>
GPU_DEVICE void multiply_dy_b(const Pipeline<C>& pipe, float (&d)[C::t_columns / 2], const ForwardTask& task,
                              typename Pipeline<C>::Position& at) {
  const LoraForward& p = pipe.p;
#pragma unroll
  for (u32 i = 0; i < C::t_columns / 2; i++) d[i] = 0.0f;
  wgmma_fence_operands(d);
  const u32 begin = task.split * p.t_split_depth, steps = pipe.steps_of_split(begin, p.t_split_depth);
  bool has_previous = false;
#pragma unroll 1
  for (u32 i = 0; i < steps; i++) {
    if (!has_rows<C::depth>(p, task.column_tile, begin + i * C::depth)) continue;
    pipe.await_full(at);
    wgmma_fence();
#pragma unroll
    for (u32 k = 0; k < C::depth / 16; k++) {
      const u64 a = pipe.left_descriptor(at.stage(), k), b = pipe.panel_descriptor(at.stage(), 0, k);
      wgmma_m64k16<typename C::E, C::t_columns, Major::K, Major::MN>(d, a, b, 1);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (has_previous) pipe.release(at.previous_stage());
    has_previous = true;
    at.advance();
  }
  wgmma_wait<0>();
  wgmma_fence_operands(d);
  if (has_previous) pipe.release(at.previous_stage());
}

/// Leaves this CTA's sums of a tile of T in the workspace; the last CTA of the tile adds all of them up. Returns whether this
/// CTA is that one. Sums of rows and columns that are not stored are left out. `word` is 8 bytes of shared memory.
template <class C>
GPU_DEVICE bool add_splits_of_t(const LoraForward& p, float (&d)[C::t_columns / 2], const ForwardTask& task, u32 first_row,
                                u32 columns, u64* word) {
  constexpr u32 quads = C::t_columns / 8;
  const SplitTile split_tile = SplitTile::of_t(p, task, quads * C::consumer_threads);
  const auto quad_of = [&](u32 i) -> float* { return &d[4 * i]; };
  const auto wanted = [&](u32 i) { return first_row < p.tokens && 8 * i < columns; };
  split_tile.store_sums<quads>(C::consumer_threads, quad_of, wanted);
  sync_named(NamedBarrier::consumers, C::consumer_threads);
  if (threadIdx.x == 0) *word = split_tile.arrive();
  sync_named(NamedBarrier::consumers, C::consumer_threads);
  if (*word == 0) return false;
  split_tile.add_sums<quads>(C::consumer_threads, quad_of, wanted);
  return true;
}

/// A tile of T, or this CTA's split of one, which MAY_BE_EMPTY: products, sums of all splits, s·T to the workspace, the flag.
template <class C, bool MAY_BE_EMPTY>
GPU_DEVICE void compute_t(const Pipeline<C>& pipe, const SegmentFactors& factors, const ForwardTask& task, u64* word,
                          typename Pipeline<C>::Position& at) {
  const LoraForward& p = pipe.p;
  float d[C::t_columns / 2];
  if constexpr (C::factors == Major::K) {
    multiply_x_a<C, MAY_BE_EMPTY>(pipe, d, task, at);
  } else {
    multiply_dy_b(pipe, d, task, at);
  }

  const u32 first = task.column_tile * C::t_columns, columns = gpu::min(C::t_columns, p.t_stride - first);
  const u32 first_row = warp_row<C>(task);
  if (p.t_splits != 1 && !add_splits_of_t<C>(p, d, task, first_row, columns, word)) return;
#pragma unroll
  for (u32 i = 0; i < C::t_columns / 2; i += 2) {
    const u32 row = first_row + lane_id() / 4 + 8 * (i / 2 % 2), column = i / 4 * 8 + lane_id() % 4 * 2;
    if (row < p.tokens && column < columns) {
      store_t<typename C::E, C::factors>(p, factors, row, first + column, d[i], d[i + 1]);
    }
  }
  sync_named(NamedBarrier::consumers, C::consumer_threads);
  if (threadIdx.x == 0) store_release(p.flags + task.row_tile * p.t_tiles + task.column_tile, task.epoch);
}

}  // namespace lora
