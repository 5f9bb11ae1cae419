// One linear layer with its adapters for any number of tokens, in one launch:
//
//   y[m, n] = act(Σ_k x[m, k] W0[n, k] + bias[n] + Σ_segments s·Σ_j B[n, j] T[m, j]) + residual[m, n],   T = x̂ A^T
//
// with x̂ = x, or x after dropout.
//
// This file has what the forward kernels share: which CTA computes what, and how y tiles wait for T.
//
// Tickets. A CTA takes a ticket for each task; the lowest tickets are T tiles. So when a CTA has the ticket of a y tile,
// every T tile has been claimed by a CTA that is running or has ended. T tiles wait for nothing, so the launch ends under
// any schedule, even with one resident CTA. The CTA that takes the last ticket sets the counter up for the next launch,
// whose epoch is one higher.
//
// Flags. A T tile holds s·T, rounded to the operands' type, in the workspace. Its flag is set to the launch's epoch, with
// release, once the tile is stored. T tiles have a split-K of their own, so that y tiles do not wait long: each CTA stores
// its sums in the workspace, and the last to arrive adds them in the order of the splits. Nothing is reset from outside, and
// a captured graph can be replayed. A y tile acquires the flag after it has issued the loads of x and W0 for all of its K; T
// and B are then further K steps.
//
// Dropout. T tiles zero the dropped values of x in their own stages; y tiles use x as it is.
//
// Without segments there are no tickets: a CTA's task number is its block index, and the launch is the base product.
//
// Cost beyond the base product: for each row tile, rank / LORA_FORWARD_T_COLUMNS T tiles, rounded up. A's part of a stage is always a whole T tile,
// with zeros beyond the last rank; wgmma multiplies these columns, mma.sync and CUDA cores skip them. Every y tile has
// rank/K more products. A task costs one atomic, its ticket; a T tile also costs its splits' arrivals and one flag.
// Determinism: every sum has a fixed order, which depends on the shape, the layout and the plan, and not on the adapters,
// the schedule or the other rows of a tile. A column outside every segment is bit for bit the base product's.
#pragma once

#include <abi.h>
#include <gpu/atomic.h>
#include <gpu/block.h>
#include <gpu/convert.h>
#include <gpu/math.h>
#include <gpu/memory.h>
#include <gpu/types.h>
#include <lora/factors.h>
#include <tile/dropout.h>
#include <tile/ticket.h>

namespace lora {

using namespace gpu;

/// A task of a CTA: a T tile or a y tile, or one split of it.
struct ForwardTask {
  u32 epoch;
  bool is_t;
  u32 row_tile;
  /// In y, or in T if `is_t`.
  u32 column_tile;
  u32 split;

  /// Takes a ticket and fetches the factors. `word` is 8 bytes of shared memory. All threads of the CTA call it.
  static GPU_DEVICE ForwardTask draw(const LoraForward& p, const SegmentFactors& factors, u64* word) {
    if (p.t_tiles == 0) return of_number(p, blockIdx.x, 0);
    factors.fetch(p);
    if (threadIdx.x == 0) {
      const u64 ticket = tile::draw_ticket(p.ticket);
      tile::settle_ticket(p.ticket, ticket, gridDim.x);
      *word = ticket;
    }
    sync_block();
    return of_number(p, tile::ticket_number(*word), tile::ticket_epoch(*word));
  }

  /// The task of a ticket number. A task may be `together` consecutive row tiles, one for each CTA of a cluster; then
  /// row_tile is the first of them.
  static GPU_DEVICE ForwardTask of_number(const LoraForward& p, u32 number, u32 epoch, u32 together = 1) {
    const u32 row_tiles = p.row_tiles / together, raster_rows = p.raster_rows / together;
    const u32 t_tasks = row_tiles * p.t_tiles * p.t_splits;
    if (number < t_tasks) {
      const u32 tile = number / p.t_splits;
      return {epoch, true, tile / p.t_tiles * together, tile % p.t_tiles, number % p.t_splits};
    }
    const u32 index = number - t_tasks, tile = index / p.splits, group_tiles = raster_rows * p.column_tiles;
    const u32 first_row = tile / group_tiles * raster_rows, rows = gpu::min(raster_rows, row_tiles - first_row);
    const u32 in_group = tile % group_tiles;
    return {epoch, false, (first_row + in_group % rows) * together, in_group / rows, index % p.splits};
  }
};

GPU_DEVICE u32 padded_rank(const LoraSegment& segment) {
  return (segment.factors.rank + LORA_FORWARD_RANK_STEP - 1) / LORA_FORWARD_RANK_STEP * LORA_FORWARD_RANK_STEP;
}

/// The segment of a column of the workspace's T. It is returned as an index, because nvcc 13.0 crashes on pointers into
/// parameters that may be null.
GPU_DEVICE u32 segment_of(const LoraForward& p, u32 t_column) {
  u32 found = 0;
  for (u32 s = 1; s < p.segment_count; s++) {
    if (t_column >= p.segments[s].t_begin) found = s;
  }
  return found;
}

/// The row of A that gives a column of the workspace's T, or null where a rank was rounded up.
template <class E>
GPU_DEVICE const E* a_row(const LoraForward& p, const SegmentFactors& all, u32 t_column) {
  const u32 segment = segment_of(p, t_column), row = t_column - p.segments[segment].t_begin;
  const LoraFactors& factors = all[segment];
  return row < factors.rank ? static_cast<const E*>(factors.a) + u64(row) * factors.a_stride : nullptr;
}

/// A K step that an adapter adds to a y tile.
struct LowRankStep {
  u32 segment;
  /// The first of the step's values of the segment's rank.
  u32 k;
};

/// The K steps of DEPTH that the adapters add to a y tile of columns `begin` to `end`.
template <u32 DEPTH>
struct LowRankSteps {
  const LoraForward& p;
  u32 begin, end;

  /// In dx every segment adds to all columns.
  template <Major FACTORS>
  static GPU_DEVICE LowRankSteps of(const LoraForward& p, u32 begin, u32 end) {
    if constexpr (FACTORS == Major::K) {
      return {p, begin, end};
    } else {
      return {p, 0, ~0u};
    }
  }

  /// The steps of one segment: none if it has no column in the tile.
  GPU_DEVICE u32 of(const LoraSegment& segment) const {
    return segment.begin < end && segment.end > begin ? (segment.factors.rank + DEPTH - 1) / DEPTH : 0;
  }

  GPU_DEVICE u32 count() const {
    u32 steps = 0;
    for (u32 s = 0; s < p.segment_count; s++) {
      steps += of(p.segments[s]);
    }
    return steps;
  }

  /// Step `index`, in the order of the segments.
  GPU_DEVICE LowRankStep at(u32 index) const {
    u32 segment = 0;
    while (true) {
      const u32 steps = of(p.segments[segment]);
      if (index < steps) return {segment, index * DEPTH};
      index -= steps;
      segment++;
    }
  }
};

/// Waits until columns `begin` to `end` of T are stored for a row tile. Loads of these columns after it see this launch's
/// values.
GPU_DEVICE void await_t(const LoraForward& p, u32 row_tile, u32 begin, u32 end, u32 epoch) {
  for (u32 tile = begin / LORA_FORWARD_T_COLUMNS; tile <= (end - 1) / LORA_FORWARD_T_COLUMNS; tile++) {
    const u32* flag = p.flags + row_tile * p.t_tiles + tile;
    while (load_acquire(flag) != epoch) back_off();
  }
}

/// The factor of T under dropout, 1/(1 - p). In dx T is Q, to which no dropout applies.
template <Major FACTORS>
GPU_DEVICE float t_factor(const LoraForward& p) {
  return FACTORS == Major::K ? p.dropout.scale : 1.0f;
}

/// Stores columns `column` and `column` + 1 of a row of T: s·T in the workspace, and T for the caller if asked. Both columns
/// belong to one segment, whose first column is even.
template <class E, Major FACTORS>
GPU_DEVICE void store_t(const LoraForward& p, const SegmentFactors& all, u32 row, u32 column, float low, float high) {
  const u32 s = segment_of(p, column);
  const LoraSegment& segment = p.segments[s];
  const float scale = all[s].scale;
  low *= t_factor<FACTORS>(p);
  high *= t_factor<FACTORS>(p);
  u32* place = reinterpret_cast<u32*>(static_cast<E*>(p.t) + u64(row) * p.t_stride + column);
  store(place, pack<E>(scale * low, scale * high));
  if (p.t_out == nullptr) return;
  E* packed = static_cast<E*>(p.t_out) + u64(row) * p.t_out_stride + segment.packed_begin;
  const u32 j = column - segment.t_begin;
  if (j < segment.factors.rank) store(packed + j, from_f32<E>(low));
  if (j + 1 < segment.factors.rank) store(packed + j + 1, from_f32<E>(high));
}

/// The same for a whole chunk of columns. They belong to one segment, because ranks are rounded up to whole chunks.
template <class E, Major FACTORS>
GPU_DEVICE void store_t_chunk(const LoraForward& p, const SegmentFactors& all, float (&value)[chunk_elements<E>], u32 row,
                              u32 column) {
  constexpr u32 elements = chunk_elements<E>;
  const u32 s = segment_of(p, column);
  const LoraSegment& segment = p.segments[s];
  const float scale = all[s].scale;
  float scaled[elements];
#pragma unroll
  for (u32 i = 0; i < elements; i++) {
    value[i] *= t_factor<FACTORS>(p);
    scaled[i] = scale * value[i];
  }
  store(reinterpret_cast<Chunk*>(static_cast<E*>(p.t) + u64(row) * p.t_stride + column), pack<E>(scaled));
  if (p.t_out == nullptr) return;
  const u32 first = column - segment.t_begin;
  E* packed = static_cast<E*>(p.t_out) + u64(row) * p.t_out_stride + segment.packed_begin + first;
#pragma unroll
  for (u32 i = 0; i < elements; i++) {
    if (first + i < segment.factors.rank) store(packed + i, from_f32<E>(value[i]));
  }
}

/// Applies dropout to x in a stage of a T tile. The threads that will read the stage call it, after a barrier. Returns
/// whether there is dropout: then another barrier must follow.
template <class E, u32 ROWS, u32 DEPTH>
GPU_DEVICE bool drop_out_stage(const LoraForward& p, Chunk* tile, u32 first_row, u32 k, u32 thread, u32 threads) {
  if (p.dropout.threshold == 0) return false;
  const u32 rows = first_row < p.tokens ? gpu::min(ROWS, p.tokens - first_row) : 0;
  tile::drop_out<E, DEPTH>(p.dropout, tile, rows, first_row, k, thread, threads);
  return true;
}

/// Split-K of one tile through the workspace: the sums of the splits, and the number of CTAs that have stored theirs.
struct SplitTile {
  /// [splits, groups of four sums of a thread, threads].
  Chunk* sums;
  u32* arrivals;
  u32 splits, split;

  /// Of a T tile.
  static GPU_DEVICE SplitTile of_t(const LoraForward& p, const ForwardTask& task, u32 tile_chunks) {
    const u32 tile = task.row_tile * p.t_tiles + task.column_tile;
    Chunk* sums = reinterpret_cast<Chunk*>(p.t_partial) + u64(tile) * p.t_splits * tile_chunks;
    return {sums, p.t_arrivals + tile, p.t_splits, task.split};
  }

  /// Of a y tile.
  static GPU_DEVICE SplitTile of_y(const LoraForward& p, const ForwardTask& task, u32 tile_chunks) {
    const u32 tile = task.row_tile * p.column_tiles + task.column_tile;
    Chunk* sums = reinterpret_cast<Chunk*>(p.partial) + u64(tile) * p.splits * tile_chunks;
    return {sums, p.arrivals + tile, p.splits, task.split};
  }

  /// Called by one thread, after a barrier of the threads that stored sums. Returns whether this CTA is the last to arrive.
  GPU_DEVICE bool arrive() const {
    const bool last = fetch_add_acq_rel(arrivals, 1u) == splits - 1;
    if (last) store_relaxed(arrivals, 0u);
    return last;
  }

  /// Stores a thread's sums in the workspace. There are QUADS groups of four: group i is quad_of(i), and is left out unless
  /// wanted(i).
  template <u32 QUADS, class Quad, class Wanted>
  GPU_DEVICE void store_sums(u32 threads, Quad&& quad_of, Wanted&& wanted) const {
    Chunk* mine = sums + split * QUADS * threads + threadIdx.x;
#pragma unroll
    for (u32 i = 0; i < QUADS; i++) {
      if (!wanted(i)) continue;
      const float* four = quad_of(i);
      store(mine + i * threads, pack<float>({four[0], four[1], four[2], four[3]}));
    }
  }

  /// Called by the last CTA to arrive: replaces its sums by the sums of all splits, added in their order.
  template <u32 QUADS, class Quad, class Wanted>
  GPU_DEVICE void add_sums(u32 threads, Quad&& quad_of, Wanted&& wanted) const {
    const Chunk* part = sums + threadIdx.x;
#pragma unroll
    for (u32 i = 0; i < QUADS; i++) {
      if (!wanted(i)) continue;
      float first[4], *four = quad_of(i);
      unpack<float>(load(part + i * threads), first);
#pragma unroll
      for (u32 e = 0; e < 4; e++) four[e] = first[e];
    }
#pragma unroll 1
    for (u32 s = 1; s < splits; s++) {
      part += QUADS * threads;
#pragma unroll
      for (u32 i = 0; i < QUADS; i++) {
        if (!wanted(i)) continue;
        float more[4], *four = quad_of(i);
        unpack<float>(load(part + i * threads), more);
#pragma unroll
        for (u32 e = 0; e < 4; e++) four[e] += more[e];
      }
    }
  }
};

/// Sets the flag of a T tile, after all threads' stores. All threads of the CTA call it.
GPU_DEVICE void publish_t(const LoraForward& p, const ForwardTask& task) {
  sync_block();
  if (threadIdx.x == 0) store_release(p.flags + task.row_tile * p.t_tiles + task.column_tile, task.epoch);
}

}  // namespace lora
