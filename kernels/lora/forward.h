// One linear layer with its adapters for any number of tokens, in one launch:
//
//   y[m, n] = act(Σ_k x[m, k] W0[n, k] + bias[n] + Σ_segments s·Σ_j B[n, j] T[m, j]) + residual[m, n],   T = x̂ A^T
//
// with x̂ = x, or what dropout makes of it.
//
// What the forward kernels share: which CTA does what, and how tiles of y get to know T.
//
// Tickets. A CTA draws one ticket, and the lowest stand for tiles of T. So whoever computes a tile of y knows that every
// tile of T has been claimed, by CTAs that run and wait for nobody: no schedule can deadlock, not even one CTA at a time.
// The drawer of the last ticket sets the counter up for the next launch, whose epoch is one higher.
//
// Flags. A tile of T is s·T, rounded to the operands' type, in a workspace, and one flag, set to the launch's epoch with
// release once the tile is stored. Several CTAs share its depth, so that nobody waits long: each leaves its sums in the
// workspace, and the last to arrive adds them up in the splits' order. Nothing is reset from outside, and a captured graph replays. A tile of y acquires the
// flag when all of its own depth is on its way, then takes T and B as so much more depth.
//
// Dropout. The tiles of T zero what is dropped of x in their own stages; the tiles of y see x as it is.
//
// With no segments there are no tickets: a CTA's number is its index, and what is left is the base product.
//
// Cost beyond the base product: T is rank / T_COLUMNS of a tile a row tile, rounded up by the copies and not by the
// products; rank / depth more products in every tile of y; one atomic and one flag a CTA.
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

/// What a CTA is to do.
struct ForwardTask {
  u32 epoch;
  bool is_t;
  u32 row_tile;
  /// Of y, or of T.
  u32 column_tile;
  u32 split;

  /// Fetches the factors, too. `word` is 8 bytes of shared memory. All threads of the CTA call it.
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

  /// Of `together` row tiles, that are taken together, this is the first.
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

/// The segment that a column of the workspace's T belongs to. An index: nvcc 13.0 crashes over pointers into parameters
/// that may be null.
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

/// A step of the depth that an adapter adds to a tile of y.
struct LowRankStep {
  u32 segment;
  /// First value of the segment's rank.
  u32 k;
};

/// The steps of DEPTH by which the adapters deepen the columns `begin` to `end`.
template <u32 DEPTH>
struct LowRankSteps {
  const LoraForward& p;
  u32 begin, end;

  /// In a backward pass, whose segments count the depth, all columns are every segment's.
  template <Major FACTORS>
  static GPU_DEVICE LowRankSteps of(const LoraForward& p, u32 begin, u32 end) {
    if constexpr (FACTORS == Major::K) {
      return {p, begin, end};
    } else {
      return {p, 0, ~0u};
    }
  }

  /// Those of a segment: none if it has no column among them.
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

  /// The index-th of them, in the segments' order.
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

/// Waits until the columns `begin` to `end` of a row tile's T are there; what is read of them after is this launch's.
GPU_DEVICE void await_t(const LoraForward& p, u32 row_tile, u32 begin, u32 end, u32 epoch) {
  for (u32 tile = begin / LORA_FORWARD_T_COLUMNS; tile <= (end - 1) / LORA_FORWARD_T_COLUMNS; tile++) {
    const u32* flag = p.flags + row_tile * p.t_tiles + tile;
    while (load_acquire(flag) != epoch) back_off();
  }
}

/// What sums of T are multiplied by for what dropout has left out. In a backward pass it leaves out nothing of T.
template <Major FACTORS>
GPU_DEVICE float t_factor(const LoraForward& p) {
  return FACTORS == Major::K ? p.dropout.scale : 1.0f;
}

/// Stores columns `column` and the next of a row of T: s·T for the tiles of y, T for who asked for it. Both belong to one
/// segment, whose first column is even.
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

/// The same for a whole chunk of columns, which lie in one segment: the steps by which ranks are rounded up are whole
/// chunks.
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

/// Drops out what a tile of T has of x in a stage, by the threads that are to read it; a barrier of theirs comes before.
/// Whether it did: then a barrier comes after.
template <class E, u32 ROWS, u32 DEPTH>
GPU_DEVICE bool drop_out_stage(const LoraForward& p, Chunk* tile, u32 first_row, u32 k, u32 thread, u32 threads) {
  if (p.dropout.threshold == 0) return false;
  const u32 rows = first_row < p.tokens ? gpu::min(ROWS, p.tokens - first_row) : 0;
  tile::drop_out<E, DEPTH>(p.dropout, tile, rows, first_row, k, thread, threads);
  return true;
}

/// The CTAs that share a tile's depth: where their sums are in the workspace, and who is the last of them.
struct SharedTile {
  /// [splits, fours of a thread, threads], four sums each.
  Chunk* sums;
  u32* arrivals;
  u32 splits, split;

  /// A tile of T.
  static GPU_DEVICE SharedTile of_t(const LoraForward& p, const ForwardTask& task, u32 tile_chunks) {
    const u32 tile = task.row_tile * p.t_tiles + task.column_tile;
    Chunk* sums = reinterpret_cast<Chunk*>(p.t_partial) + u64(tile) * p.t_splits * tile_chunks;
    return {sums, p.t_arrivals + tile, p.t_splits, task.split};
  }

  /// A tile of y.
  static GPU_DEVICE SharedTile of_y(const LoraForward& p, const ForwardTask& task, u32 tile_chunks) {
    const u32 tile = task.row_tile * p.column_tiles + task.column_tile;
    Chunk* sums = reinterpret_cast<Chunk*>(p.partial) + u64(tile) * p.splits * tile_chunks;
    return {sums, p.arrivals + tile, p.splits, task.split};
  }

  /// By one thread, behind a barrier of all that left sums: whether all CTAs have.
  GPU_DEVICE bool arrive() const {
    const bool last = fetch_add_acq_rel(arrivals, 1u) == splits - 1;
    if (last) store_relaxed(arrivals, 0u);
    return last;
  }

  /// Of a thread's FOURS times four sums, four_of(i), those that wanted(i).
  template <u32 FOURS, class Four, class Wanted>
  GPU_DEVICE void leave(u32 threads, Four&& four_of, Wanted&& wanted) const {
    Chunk* mine = sums + split * FOURS * threads + threadIdx.x;
#pragma unroll
    for (u32 i = 0; i < FOURS; i++) {
      if (!wanted(i)) continue;
      const float* four = four_of(i);
      store(mine + i * threads, pack<float>({four[0], four[1], four[2], four[3]}));
    }
  }

  /// By the last: all splits' sums in place of its own.
  template <u32 FOURS, class Four, class Wanted>
  GPU_DEVICE void add_up(u32 threads, Four&& four_of, Wanted&& wanted) const {
    const Chunk* part = sums + threadIdx.x;
#pragma unroll
    for (u32 i = 0; i < FOURS; i++) {
      if (!wanted(i)) continue;
      float first[4], *four = four_of(i);
      unpack<float>(load(part + i * threads), first);
#pragma unroll
      for (u32 e = 0; e < 4; e++) four[e] = first[e];
    }
#pragma unroll 1
    for (u32 s = 1; s < splits; s++) {
      part += FOURS * threads;
#pragma unroll
      for (u32 i = 0; i < FOURS; i++) {
        if (!wanted(i)) continue;
        float more[4], *four = four_of(i);
        unpack<float>(load(part + i * threads), more);
#pragma unroll
        for (u32 e = 0; e < 4; e++) four[e] += more[e];
      }
    }
  }
};

/// Says that a tile of T is stored. All threads of the CTA call it.
GPU_DEVICE void publish_t(const LoraForward& p, const ForwardTask& task) {
  sync_block();
  if (threadIdx.x == 0) store_release(p.flags + task.row_tile * p.t_tiles + task.column_tile, task.epoch);
}

}  // namespace lora
