// lora_forward on wgmma (sm_90a) for many tokens.
//
// Who does what. As many CTAs as the device has SMs draw tasks until none is left. In each, two warpgroups multiply 64 rows
// of a tile of 128 × COLUMNS each; a third fills the ring (lora/forward_wgmma_ring.h) ahead of them, across the borders of
// tasks.
//
// With CTAS = 2, clusters of two draw tasks: two tiles, one above the other, which have W0 in common. Each CTA fetches half
// of it for both, so that L2 is asked for a third less. Both go through the same steps, and a stage is free when both have
// done with it.
//
// Draws. One thread draws and passes each task on in one of two slots. Tickets grow along a CTA's tasks, and tiles of T
// have the lowest of all: whoever waits for one waits for a CTA that is at work on it, or on another before it.
//
// The way out. Sums leave 64 columns at a time: rounded in registers, written to a swizzled panel of shared memory, sent on
// by the copy engine while the next panel is made, or, where the engine does not take y's rows, by the threads.
//
// Shared memory: 192 KiB of stages, 32 KiB for the sums on their way out, the barriers, the factors.
#pragma once

#include <gpu/cluster.h>
#include <gpu/registers.h>
#include <lora/forward_wgmma_tile.h>
#include <tile/epilogue.h>

namespace lora {

template <class E, Along WEIGHT, Along FACTORS, u32 COLUMNS, u32 CTAS>
class ForwardWgmma : ForwardWgmmaTile<E, WEIGHT, FACTORS, 2, COLUMNS, (COLUMNS == 256 ? 4 : 6), CTAS> {
  using Tile = ForwardWgmmaTile<E, WEIGHT, FACTORS, 2, COLUMNS, (COLUMNS == 256 ? 4 : 6), CTAS>;
  using Tile::rows, Tile::depth, Tile::stages, Tile::p;

 public:
  static constexpr u32 warps = LORA_FORWARD_WGMMA_THREADS / warp_size;

  GPU_DEVICE explicit ForwardWgmma(const LoraForwardTma& params) : ForwardWgmma(params, Places()) {}

  GPU_DEVICE void run() {
    if (threadIdx.x == 0) {
      this->init_ring();
      for (u32 i = 0; i < 2; i++) {
        mbarrier_init(drawn + 8 * i, 1);
        mbarrier_init(taken + 8 * i, warps * CTAS);
      }
      fence_mbarrier_init();
    }
    grid_dependency_launch();
    grid_dependency_wait();
    this->factors.fetch(p);
    sync_all();
    if (this->group() == 2) {
      decrease_registers<72>();
      produce();
    } else {
      increase_registers<216>();
      consume();
    }
    if constexpr (CTAS > 1) {
      sync_warp();
      cluster_sync();  // nobody leaves while the other has copies or arrivals under way to it
    }
  }

 private:
  /// A panel of 64 rows and columns, 16-bit values, and two of them a warpgroup.
  static constexpr u32 panel_columns = 64, panel_chunks = 64 * panel_columns / 8;

  /// One after the other from the start.
  struct Places {
    Chunk *ring, *panels;
    u64 *barriers, *words;
    LoraFactors* factors;

    GPU_DEVICE Places() {
      SharedMemory shared;
      ring = shared.take<Chunk, 1024>(Tile::stages * Tile::stage_chunks);
      panels = shared.take<Chunk, 1024>(4 * panel_chunks);
      barriers = shared.take<u64>(2 * Tile::stages + 4);
      words = shared.take<u64>(3);
      factors = SegmentFactors::take_room(shared);
    }
  };

  GPU_DEVICE ForwardWgmma(const LoraForwardTma& params, Places places)
      : Tile(params, places.ring, places.barriers, places.words + 2, places.factors),
        params(params),
        panels(places.panels),
        words(places.words),
        drawn(shared_address(places.barriers + 2 * Tile::stages)),
        taken(drawn + 16) {}

  static GPU_DEVICE void sync_all() {
    if constexpr (CTAS > 1) {
      cluster_sync();
    } else {
      sync_block();
    }
  }

  /// The round-th task of this CTA, or false when there is none. All warps call it, one after the other or side by side.
  GPU_DEVICE bool next(u32 round, ForwardTask& task) const {
    const u32 tasks = p.row_tiles / CTAS * (p.t_tiles * p.t_splits + p.column_tiles), drawers = gridDim.x / CTAS;
    u32 number = blockIdx.x / CTAS + round * drawers, epoch = 0;
    if (p.t_tiles != 0) {
      const u32 slot = round % 2, parity = round / 2 % 2;
      if (threadIdx.x == 256 && (CTAS == 1 || cluster_rank() == 0)) {
        this->wait(taken + 8 * slot, parity ^ 1);
        const u64 word = fetch_add_relaxed(p.ticket, u64(1));
        if (u32(word) == tasks + drawers - 1) store_relaxed(p.ticket, u64(u32(word >> 32) + 1) << 32);
        pass_on(slot, word);
      }
      sync_warp();
      this->wait(drawn + 8 * slot, parity);
      sync_warp();  // lane 0 speaks for all: none of them may still wait
      u64 word = 0;
      if (lane_id() == 0) {
        word = words[slot];
        this->arrive(taken + 8 * slot, 0);
      }
      word = shuffle(word, 0);
      number = u32(word);
      epoch = u32(word >> 32) + 1;
    }
    if (number >= tasks) return false;
    task = ForwardTask::of_number(p, number, epoch, CTAS);
    if constexpr (CTAS > 1) task.row_tile += cluster_rank();
    return true;
  }

  GPU_DEVICE void pass_on(u32 slot, u64 word) const {
    if constexpr (CTAS == 1) {
      words[slot] = word;
      mbarrier_arrive(drawn + 8 * slot);
    } else {
#pragma unroll
      for (u32 rank = 0; rank < CTAS; rank++) {
        const u32 place = map_shared(shared_address(words + slot), rank);
        store_cluster(place, u32(word));
        store_cluster(place + 4, u32(word >> 32));
        mbarrier_arrive_cluster(map_shared(drawn + 8 * slot, rank));
      }
    }
  }

  // --- The third warpgroup.

  GPU_DEVICE void produce() const {
    const bool copies = warp_id() == 8 && elect_one();
    u32 step = 0;
    ForwardTask task;
    for (u32 round = 0; next(round, task); round++) {
      if (task.is_t) {
        this->shrink_operands(task, copies, step);
        continue;
      }
      const u32 first_column = task.column_tile * COLUMNS, base_steps = this->steps_of_split(0, p.depth);
      if (copies) this->base_operands(task.row_tile * rows, first_column, 0, base_steps, step);
      step += base_steps;
      const auto adapters = this->low_rank(first_column);
      const u32 more = adapters.count();
      // A barrier's parity tells a thread only whether it is one phase ahead: nobody may be two.
      if (more != 0) Tile::together();
      for (u32 i = 0; i < more; i++, step++) this->low_rank_operands(task, adapters.at(i), copies, step);
    }
  }

  // --- The warpgroups that multiply.

  GPU_DEVICE void consume() const {
    u32 step = 0;
    ForwardTask task;
    for (u32 round = 0; next(round, task); round++) {
      if (task.is_t) {
        this->template shrink<false>(task, step);
      } else {
        multiply(task, step);
      }
    }
    // The engine may read shared memory until its last copy is done.
    if (threadIdx.x % 128 == 0) bulk_wait_read<0>();
  }

  GPU_DEVICE void multiply(const ForwardTask& task, u32& step) const {
    // Kept as the instruction for all columns numbers them: 32 registers for each 64.
    float d[COLUMNS / 2];
    this->multiply_base(d, this->steps_of_split(0, p.depth), step);
    this->add_adapters(d, task, 0, 1, step);
    send(d, task);
  }

  /// This warpgroup's rows, rounded.
  GPU_DEVICE void send(const float (&d)[COLUMNS / 2], const ForwardTask& task) const {
    const tile::Epilogue<E> epilogue(p);
    const u32 row = warp_id() % 4 * 16 + lane_id() / 4, group_row = task.row_tile * rows + 64 * this->group();
#pragma unroll
    for (u32 part = 0; part < COLUMNS / panel_columns; part++) {
      const u32 column = task.column_tile * COLUMNS + panel_columns * part;
      Chunk* panel = panels + (2 * this->group() + part % 2) * panel_chunks;
      // The copy before the last was the last to read this panel.
      if (threadIdx.x % 128 == 0) bulk_wait_read<1>();
      together();
#pragma unroll
      for (u32 i = 0; i < 32; i += 2) {
        const u32 panel_row = row + 8 * (i / 2 % 2), chunk = i / 4;
        const u32 rounded = epilogue.finish_pair(d[32 * part + i], d[32 * part + i + 1], group_row + panel_row,
                                                 column + 8 * chunk + lane_id() % 4 * 2);
        panel[tile::swizzled<panel_columns / 8>(panel_row, chunk)].word[lane_id() % 4] = rounded;
      }
      if (params.y_mapped != 0) {
        fence_proxy_async_shared();
        together();
        if (threadIdx.x % 128 == 0) {
          if (column < p.columns && group_row < p.tokens) {
            tma_store_2d(&params.y, shared_address(panel), i32(column), i32(group_row));
          }
          bulk_commit();  // an empty group, too, so that the wait counts panels
        }
      } else {
        together();
        copy_out(panel, group_row, column);
      }
    }
  }

  GPU_DEVICE void together() const { sync_named(5 + this->group(), 128); }

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
        if (column + e < p.columns) store(y + e, E{static_cast<u16>(values.word[e / 2] >> (16 * (e % 2)))});
      }
    }
  }

  const LoraForwardTma& params;
  Chunk* panels;
  u64* words;
  u32 drawn, taken;
};

}  // namespace lora

#define FORWARD_WGMMA_TILE(NAME, FACTORS, LAYOUT, ALONG, E, TILE, COLUMNS, CTAS)                                       \
  GPU_KERNEL(lora_##NAME##_##LAYOUT##_wgmma_##E##_##TILE, LoraForwardTma, LORA_FORWARD_WGMMA_THREADS, 1) {              \
    lora::ForwardWgmma<gpu::E, tile::Along::ALONG, tile::Along::FACTORS, COLUMNS, CTAS>(params).run();                  \
  }

#define FORWARD_WGMMA(NAME, FACTORS, E)                                           \
  FORWARD_WGMMA_TILE(NAME, FACTORS, rows, Depth, E, n256x2, 256, 2)               \
  FORWARD_WGMMA_TILE(NAME, FACTORS, rows, Depth, E, n256, 256, 1)                 \
  FORWARD_WGMMA_TILE(NAME, FACTORS, rows, Depth, E, n128, 128, 1)                 \
  FORWARD_WGMMA_TILE(NAME, FACTORS, columns, Columns, E, n256x2, 256, 2)          \
  FORWARD_WGMMA_TILE(NAME, FACTORS, columns, Columns, E, n256, 256, 1)            \
  FORWARD_WGMMA_TILE(NAME, FACTORS, columns, Columns, E, n128, 128, 1)
