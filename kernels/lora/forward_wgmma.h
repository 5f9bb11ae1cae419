// lora_forward on wgmma (sm_90a) for many tokens.
//
// Life of a CTA. As many CTAs as the device has SMs draw tasks, T tiles and y tiles, until none is left. Each of two
// consumer warpgroups multiplies 64 rows of a tile of 128 rows; the producer warpgroup fills the ring
// (lora/wgmma/pipeline.h) ahead of them, across the borders of tasks.
//
//   producer   ┌ T tile: x by TMA, A by its threads             (lora/wgmma/t_tile.h)
//              └ y tile: x and W0 by TMA; then T and B           (lora/wgmma/pipeline.h, lora/wgmma/low_rank.h)
//   consumers  ┌ T tile: x·Aᵀ, sums of all splits, flag          (lora/wgmma/t_tile.h)
//              └ y tile: main loop, adapters, epilogue, store    (lora/wgmma/pipeline.h, lora/wgmma/low_rank.h, here)
//
// Clusters. Where the tile's `sharing` (lora/tiles.h) is 2, clusters of two CTAs draw tasks of two tiles, one above the
// other, which share W0. Each CTA fetches half of W0's part of a stage for both (multicast), so that L2 is asked for a third
// less. Both CTAs take the same steps, and a stage is empty when both have released it.
//
// Tickets. Without adapters there are none: a CTA's tasks follow from its index. Otherwise one thread of a cluster draws a
// ticket and passes it to all warps through one of two words in shared memory, each with two mbarriers: drawn, and taken by
// all warps. A CTA takes tickets in increasing order and T tiles have the lowest: a T tile that a y tile waits for has been
// claimed by a CTA that is running or has ended.
//
// Store. The consumers store y 64 columns at a time: they round in registers and write to a swizzled panel of shared memory,
// which TMA stores while they make the next panel. Where y's rows do not suit TMA, the threads store the panel.
//
// Shared memory: 192 KiB of stages, 32 KiB of panels, the barriers, the factors.
#pragma once

#include <gpu/registers.h>
#include <lora/wgmma/low_rank.h>
#include <lora/wgmma/t_tile.h>
#include <tile/epilogue.h>
#include <tile/ticket.h>

namespace lora {

/// C is a WgmmaConfig of two consumer warpgroups.
template <class C>
class ForwardWgmma {
  using E = typename C::E;

 public:
  GPU_DEVICE explicit ForwardWgmma(const LoraForwardTma& params) : ForwardWgmma(params, Memory()) {}

  GPU_DEVICE void run() {
    set_up();
    if (warpgroup() == C::groups) {
      decrease_registers<72>();
      produce();
    } else {
      increase_registers<216>();
      consume();
    }
    if constexpr (C::ctas > 1) {
      sync_warp();
      cluster_sync();  // the other CTA's copies to this one and arrivals at its barriers end first
    }
  }

 private:
  // --- Set-up.

  GPU_DEVICE void set_up() const {
    if (threadIdx.x == 0) {
      pipe.init();
      for (u32 i = 0; i < 2; i++) {
        mbarrier_init(drawn + 8 * i, 1);
        mbarrier_init(taken + 8 * i, C::threads / warp_size * C::ctas);
      }
      fence_mbarrier_init();
    }
    grid_dependency_launch();
    grid_dependency_wait();
    factors.fetch(p);
    if constexpr (C::ctas > 1) {
      cluster_sync();
    } else {
      sync_block();
    }
  }

  // --- Producer.

  GPU_DEVICE void produce() const {
    const bool copies = warp_id() == 4 * C::groups && elect_one();
    typename Pipeline<C>::Position at;
    ForwardTask task;
    for (u32 round = 0; next(round, task); round++) {
      if (task.is_t) {
        load_t_operands(pipe, factors, task, copies, at);
        continue;
      }
      const u32 first_column = task.column_tile * C::columns, base_steps = pipe.steps_of_split(0, p.depth);
      if (copies) pipe.fetch_base(task.row_tile * C::rows, first_column, 0, base_steps, at);
      at.advance_by(base_steps);
      const auto steps = low_rank_steps<C>(p, first_column);
      const u32 count = steps.count();
      // All other threads skip fetch_base. A wait by parity holds only for a barrier that is at most one phase early: without
      // this barrier these threads could be two phases ahead of the ring.
      if (count != 0) pipe.sync_producers();
      for (u32 i = 0; i < count; i++) {
        load_low_rank(pipe, factors, task, steps.at(i), copies, at);
        at.advance();
      }
    }
  }

  // --- Consumers.

  GPU_DEVICE void consume() const {
    typename Pipeline<C>::Position at;
    ForwardTask task;
    for (u32 round = 0; next(round, task); round++) {
      if (task.is_t) {
        compute_t<C, false>(pipe, factors, task, words + 2, at);
        continue;
      }
      // The accumulators lie in d as the MMA of all columns numbers them: 32 registers for each 64 columns.
      float d[C::columns / 2];
      pipe.multiply_base(d, pipe.steps_of_split(0, p.depth), at);
      add_adapters(pipe, d, task, 0, 1, at);
      store(d, task);
    }
    // The copy engine reads the panels until its last copy is done.
    if (threadIdx.x % 128 == 0) bulk_wait_read<0>();
  }

  /// Bias, activation, residual, rounding, and the way to y.
  GPU_DEVICE void store(const float (&d)[C::columns / 2], const ForwardTask& task) const {
    const tile::Epilogue<E> epilogue(p);
    const u32 row = warp_id() % 4 * 16 + lane_id() / 4, group_row = task.row_tile * C::rows + 64 * warpgroup();
#pragma unroll
    for (u32 part = 0; part < C::columns / panel_columns; part++) {
      const u32 column = task.column_tile * C::columns + panel_columns * part;
      Chunk* panel = panels + (2 * warpgroup() + part % 2) * panel_chunks;
      // The copy before the last was the last to read this panel.
      if (threadIdx.x % 128 == 0) bulk_wait_read<1>();
      sync_panel();
#pragma unroll
      for (u32 i = 0; i < 32; i += 2) {
        const u32 panel_row = row + 8 * (i / 2 % 2), chunk = i / 4;
        const u32 rounded = epilogue.finish_pair(d[32 * part + i], d[32 * part + i + 1], group_row + panel_row,
                                                 column + 8 * chunk + lane_id() % 4 * 2);
        panel[tile::swizzled<panel_columns / 8>(panel_row, chunk)].word[lane_id() % 4] = rounded;
      }
      if (params.y_mapped != 0) {
        fence_proxy_async_shared();
        sync_panel();
        if (threadIdx.x % 128 == 0) {
          if (column < p.columns && group_row < p.tokens) {
            tma_store_2d(&params.y, shared_address(panel), i32(column), i32(group_row));
          }
          bulk_commit();  // an empty group, too, so that the wait counts panels
        }
      } else {
        sync_panel();
        copy_out(panel, group_row, column);
      }
    }
  }

  static GPU_DEVICE void sync_panel() { sync_named(NamedBarrier::panel_of_group + warpgroup(), 128); }

  /// A panel, by its warpgroup's threads, to rows of y that start anywhere.
  GPU_DEVICE void copy_out(const Chunk* panel, u32 first_row, u32 first_column) const {
#pragma unroll 1
    for (u32 i = threadIdx.x % 128; i < panel_chunks; i += 128) {
      const u32 row = i / (panel_columns / 8), chunk = i % (panel_columns / 8), column = first_column + 8 * chunk;
      if (first_row + row >= p.tokens) continue;
      const Chunk values = load_shared(panel + tile::swizzled<panel_columns / 8>(row, chunk));
      E* y = static_cast<E*>(p.y) + u64(first_row + row) * p.y_stride + column;
#pragma unroll
      for (u32 e = 0; e < 8; e++) {
        if (column + e < p.columns) gpu::store(y + e, E{static_cast<u16>(values.word[e / 2] >> (16 * (e % 2)))});
      }
    }
  }

  // --- Tasks.

  /// The round-th task of this CTA, or false when there is none. All warps call it, one after the other or side by side.
  GPU_DEVICE bool next(u32 round, ForwardTask& task) const {
    const u32 tasks = p.row_tiles / C::ctas * (p.t_tiles * p.t_splits + p.column_tiles), drawers = gridDim.x / C::ctas;
    u32 number = blockIdx.x / C::ctas + round * drawers, epoch = 0;
    if (p.t_tiles != 0) {
      const u32 slot = round % 2, parity = round / 2 % 2;
      if (threadIdx.x == C::consumer_threads && (C::ctas == 1 || cluster_rank() == 0)) {
        pipe.wait(taken + 8 * slot, parity ^ 1);
        const u64 ticket = tile::draw_ticket(p.ticket);
        tile::settle_ticket(p.ticket, ticket, tasks + drawers);
        pass_on(slot, ticket);
      }
      sync_warp();
      pipe.wait(drawn + 8 * slot, parity);
      sync_warp();  // lane 0 arrives for its warp: no other lane may still be waiting
      u64 ticket = 0;
      if (lane_id() == 0) {
        ticket = words[slot];
        pipe.arrive(taken + 8 * slot, 0);
      }
      ticket = shuffle(ticket, 0);
      number = tile::ticket_number(ticket);
      epoch = tile::ticket_epoch(ticket);
    }
    if (number >= tasks) return false;
    task = ForwardTask::of_number(p, number, epoch, C::ctas);
    if constexpr (C::ctas > 1) task.row_tile += cluster_rank();
    return true;
  }

  /// Hands a ticket to the warps of all CTAs of the cluster.
  GPU_DEVICE void pass_on(u32 slot, u64 ticket) const {
    if constexpr (C::ctas == 1) {
      words[slot] = ticket;
      mbarrier_arrive(drawn + 8 * slot);
    } else {
#pragma unroll
      for (u32 rank = 0; rank < C::ctas; rank++) {
        const u32 place = map_shared(shared_address(words + slot), rank);
        store_cluster(place, u32(ticket));
        store_cluster(place + 4, u32(ticket >> 32));
        mbarrier_arrive_cluster(map_shared(drawn + 8 * slot, rank));
      }
    }
  }

  // --- Shared memory.

  /// A panel of 64 rows and columns, 16-bit values; a warpgroup has two.
  static constexpr u32 panel_columns = 64, panel_chunks = 64 * panel_columns / 8;

  struct Memory {
    Chunk *ring, *panels;
    u64 *barriers, *words;
    LoraFactors* factors;

    GPU_DEVICE Memory() {
      SharedMemory shared;
      ring = shared.take<Chunk, 1024>(C::stages * C::stage_chunks);
      panels = shared.take<Chunk, 1024>(2 * C::groups * panel_chunks);
      barriers = shared.take<u64>(2 * C::stages + 4);
      words = shared.take<u64>(3);
      factors = SegmentFactors::take_room(shared);
    }
  };

  GPU_DEVICE ForwardWgmma(const LoraForwardTma& params, Memory memory)
      : params(params),
        p(params.forward),
        pipe(params, memory.ring, memory.barriers),
        factors(memory.factors),
        panels(memory.panels),
        words(memory.words),
        drawn(shared_address(memory.barriers + 2 * C::stages)),
        taken(drawn + 16) {}

  const LoraForwardTma& params;
  const LoraForward& p;
  const Pipeline<C> pipe;
  const SegmentFactors factors;
  Chunk* const panels;
  /// Two slots for tickets, and a word of a tile of T.
  u64* const words;
  /// Barriers, one a slot: a ticket is there; all warps have read it.
  const u32 drawn, taken;
};

}  // namespace lora

/// A kernel of this family. WEIGHT and FACTORS are the contiguous dimensions of W0 and of A and B in the product.
#define FORWARD_WGMMA(NAME, E, WEIGHT, FACTORS, TILE)                                                                     \
  GPU_KERNEL(NAME, LoraForwardTma, lora::tiles::TILE::threads, lora::tiles::TILE::ctas) {                         \
    using Config = lora::WgmmaConfig<gpu::E, gpu::Major::WEIGHT, gpu::Major::FACTORS, lora::tiles::TILE>;          \
    lora::ForwardWgmma<Config>(params).run();                                                                             \
  }
