// lora_forward on wgmma (sm_90a) for few tokens: the CTAs of a cluster share the depth of one tile.
//
// Who does what. A cluster of as many CTAs as a tile has splits draws one ticket. Of a tile of y each of its CTAs sums up a
// part of the depth and, where the tile has adapters, every size-th step of T and B; then they finish it together
// (lora/forward_wgmma_share.h). Tiles of T go through the workspace instead, since a tile of T is done earlier the
// more CTAs share it, and there may be more of these than a cluster has: each CTA of a cluster takes a split of its own.
//
// Within a CTA, GROUPS warpgroups multiply 64 rows each, the last one copies. Two CTAs fit an SM where GROUPS is 1, so that
// one computes T or finishes while the other keeps memory busy.
//
// Without adapters there are no tickets, and the first of W0 is on its way before the launch ahead has ended. Bytes in flight:
// up to 192 KiB an SM.
#pragma once

#include <lora/forward_wgmma_share.h>

namespace lora {

template <class E, Along WEIGHT, Along FACTORS, u32 GROUPS, u32 COLUMNS, u32 STAGES>
class ForwardWgmmaSplit : ForwardWgmmaShare<E, WEIGHT, FACTORS, GROUPS, COLUMNS, STAGES> {
  using Share = ForwardWgmmaShare<E, WEIGHT, FACTORS, GROUPS, COLUMNS, STAGES>;
  using typename Share::Places, typename Share::Tile;
  using Tile::rows, Tile::depth, Tile::p;

 public:
  GPU_DEVICE explicit ForwardWgmmaSplit(const LoraForwardTma& params) : ForwardWgmmaSplit(params, Places()) {}

  GPU_DEVICE void run() {
    const bool copying = this->group() == GROUPS, fetches = copies();
    if (threadIdx.x == 0) {
      this->init_ring();
      fence_mbarrier_init();
    }
    grid_dependency_launch();
    sync_block();
    u32 ahead = 0;
    if (p.t_tiles == 0 && fetches) {
      const ForwardTask task = ForwardTask::of_number(p, blockIdx.x, 0);
      const u32 k = task.split * p.split_depth;
      ahead = this->weight_ahead(task.column_tile * COLUMNS, k, this->steps_of_split(k, p.split_depth));
    }
    sync_warp();
    grid_dependency_wait();
    this->factors.fetch(p);
    const ForwardTask task = draw();
    if (task.is_t) {
      u32 step = 0;
      if (copying) {
        this->shrink_operands(task, fetches, step);
      } else {
        this->template shrink<true>(task, step);
      }
      return;
    }
    if (copying) {
      produce(task, fetches, ahead);
    } else {
      multiply(task);
    }
    this->finish(task);
  }

 private:
  GPU_DEVICE ForwardWgmmaSplit(const LoraForwardTma& params, Places places) : Share(params, places), drawn(places.words) {}

  static GPU_DEVICE bool copies() { return warp_id() == 4 * GROUPS && elect_one(); }

  /// One ticket for the whole cluster. With tiles of T, all CTAs of a cluster have one, or all have a tile of y.
  GPU_DEVICE ForwardTask draw() {
    const u32 rank = cluster_rank(), size = cluster_size();
    if (p.t_tiles == 0) {
      sync_block();
      return ForwardTask::of_number(p, blockIdx.x, 0);
    }
    u64 ticket = 0;
    if (rank == 0 && warp_id() == 0) {
      if (lane_id() == 0) {
        ticket = fetch_add_relaxed(p.ticket, u64(1));
        if (u32(ticket) == gridDim.x / size - 1) store_relaxed(p.ticket, u64(u32(ticket >> 32) + 1) << 32);
      }
      ticket = shuffle(ticket, 0);
    }
    cluster_sync();  // all have started
    if (rank == 0 && threadIdx.x < size) {
      const u32 place = map_shared(shared_address(drawn), threadIdx.x);
      store_cluster(place, u32(ticket));
      store_cluster(place + 4, u32(ticket >> 32));
    }
    cluster_sync();
    return ForwardTask::of_number(p, u32(*drawn) * size + rank, u32(*drawn >> 32) + 1);
  }

  GPU_DEVICE void produce(const ForwardTask& task, bool fetches, u32 ahead) const {
    const u32 first_column = task.column_tile * COLUMNS, begin = task.split * p.split_depth;
    const u32 base_steps = this->steps_of_split(begin, p.split_depth);
    if (fetches) this->base_operands(task.row_tile * rows, first_column, begin, base_steps, 0, ahead);
    const auto adapters = this->low_rank(first_column);
    const u32 more = adapters.count();
    // A barrier's parity tells a thread only whether it is one phase ahead: nobody may be two.
    if (more > task.split) this->together();
    u32 step = base_steps;
    for (u32 i = task.split; i < more; i += p.splits, step++) this->low_rank_operands(task, adapters.at(i), fetches, step);
  }

  /// This CTA's part of a tile, left in its shared memory.
  GPU_DEVICE void multiply(const ForwardTask& task) const {
    float d[COLUMNS / 2];
    u32 step = 0;
    this->multiply_base(d, this->steps_of_split(task.split * p.split_depth, p.split_depth), step);
    this->add_adapters(d, task, task.split, p.splits, step);
    this->leave(d);
  }

  /// The cluster's ticket. Nobody writes there afterwards: the copying warpgroup may read it late.
  u64* drawn;
};

}  // namespace lora

#define FORWARD_WGMMA_SPLIT_TILE(NAME, FACTORS, LAYOUT, ALONG, E, GROUPS, TILE, COLUMNS, STAGES, MIN_CTAS)               \
  GPU_KERNEL(lora_##NAME##_##LAYOUT##_wgmma_##E##_##TILE, LoraForwardTma, 128 * (GROUPS + 1), MIN_CTAS) {                 \
    lora::ForwardWgmmaSplit<gpu::E, tile::Along::ALONG, tile::Along::FACTORS, GROUPS, COLUMNS, STAGES>(params).run();     \
  }

#define FORWARD_WGMMA_SPLIT(NAME, FACTORS, E)                                           \
  FORWARD_WGMMA_SPLIT_TILE(NAME, FACTORS, rows, Depth, E, 1, m64n64, 64, 6, 2)          \
  FORWARD_WGMMA_SPLIT_TILE(NAME, FACTORS, rows, Depth, E, 1, m64n128, 128, 4, 2)        \
  FORWARD_WGMMA_SPLIT_TILE(NAME, FACTORS, rows, Depth, E, 2, m128n128, 128, 6, 1)       \
  FORWARD_WGMMA_SPLIT_TILE(NAME, FACTORS, columns, Columns, E, 1, m64n64, 64, 6, 2)     \
  FORWARD_WGMMA_SPLIT_TILE(NAME, FACTORS, columns, Columns, E, 1, m64n128, 128, 4, 2)   \
  FORWARD_WGMMA_SPLIT_TILE(NAME, FACTORS, columns, Columns, E, 2, m128n128, 128, 6, 1)
