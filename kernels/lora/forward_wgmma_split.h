// lora_forward on wgmma (sm_90a) for few tokens: the CTAs of a cluster share the depth of one tile.
//
// Who does what. A cluster of as many CTAs as a tile has splits draws one ticket. Of a tile of y each of its CTAs sums up a
// part of the depth and, where the tile has adapters, every size-th step of T and B. Then each leaves its sums in its own
// shared memory, and after the cluster's barrier finishes a share of the tile's rows: it adds up the others' sums in the
// splits' order and sends the rows out. Tiles of T go through the workspace instead, since a tile of T is done earlier the
// more CTAs share it, and there may be more of these than a cluster has: each CTA of a cluster takes a split of its own.
//
// Within a CTA, GROUPS warpgroups multiply 64 rows each, the last one copies. Two CTAs fit an SM where GROUPS is 1, so that
// one computes T or finishes while the other keeps memory busy.
//
// Shared memory: the stages, which take the sums afterwards, the barriers, and the factors. Bytes in flight: up to 192 KiB an SM.
// Determinism: the splits' order, whatever CTA comes first.
#pragma once

#include <gpu/cluster.h>
#include <lora/forward_wgmma_tile.h>
#include <tile/epilogue.h>

namespace lora {

template <class E, Along WEIGHT, Along FACTORS, u32 GROUPS, u32 COLUMNS, u32 STAGES>
class ForwardWgmmaSplit : ForwardWgmmaTile<E, WEIGHT, FACTORS, GROUPS, COLUMNS, STAGES> {
  using Tile = ForwardWgmmaTile<E, WEIGHT, FACTORS, GROUPS, COLUMNS, STAGES>;
  using Tile::rows, Tile::depth, Tile::p;

 public:
  static constexpr u32 threads = 128 * (GROUPS + 1);

  GPU_DEVICE explicit ForwardWgmmaSplit(const LoraForwardTma& params) : ForwardWgmmaSplit(params, Places()) {}

  GPU_DEVICE void run() {
    grid_dependency_launch();
    grid_dependency_wait();
    this->factors.fetch(p);
    const ForwardTask task = draw();
    const bool copying = this->group() == GROUPS;
    if (task.is_t) {
      u32 step = 0;
      if (copying) {
        this->shrink_operands(task, copies(), step);
      } else {
        this->template shrink<true>(task, step);
      }
      return;
    }
    if (copying) {
      produce(task);
    } else {
      multiply(task);
    }
    sync_warp();  // one lane copies: the barrier takes whole warps
    cluster_sync();
    finish(task);
    cluster_sync();  // nobody leaves while others read its sums
  }

 private:
  /// Two lanes that share a column's place lie 8 rows apart; so they and their neighbours meet 32 different banks.
  static constexpr u32 sum_stride = COLUMNS + 8;
  static_assert(rows * sum_stride * sizeof(float) <= STAGES * Tile::stage_chunks * sizeof(Chunk), "the sums fit the ring");

  /// One after the other from the start.
  struct Places {
    Chunk* ring;
    u64 *barriers, *words;
    LoraFactors* factors;

    GPU_DEVICE Places() {
      SharedMemory shared;
      ring = shared.take<Chunk, 1024>(STAGES * Tile::stage_chunks);
      barriers = shared.take<u64>(2 * STAGES);
      words = shared.take<u64>(2);
      factors = SegmentFactors::take_room(shared);
    }
  };

  GPU_DEVICE ForwardWgmmaSplit(const LoraForwardTma& params, Places places)
      : Tile(params, places.ring, places.barriers, places.words + 1, places.factors), drawn(places.words) {}

  static GPU_DEVICE bool copies() { return warp_id() == 4 * GROUPS && elect_one(); }

  /// One ticket for the whole cluster. With tiles of T, all CTAs of a cluster have one, or all have a tile of y.
  GPU_DEVICE ForwardTask draw() {
    const u32 rank = cluster_rank(), size = cluster_size();
    if (threadIdx.x == 0) {
      this->init_ring();
      fence_mbarrier_init();
    }
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

  GPU_DEVICE void produce(const ForwardTask& task) const {
    const u32 first_column = task.column_tile * COLUMNS, begin = task.split * p.split_depth;
    const u32 base_steps = this->steps_of_split(begin, p.split_depth);
    const bool copies = this->copies();
    if (copies) this->base_operands(task.row_tile * rows, first_column, begin, base_steps, 0);
    const auto adapters = this->low_rank(first_column);
    const u32 more = adapters.count();
    // A barrier's parity tells a thread only whether it is one phase ahead: nobody may be two.
    if (more > task.split) this->together();
    u32 step = base_steps;
    for (u32 i = task.split; i < more; i += p.splits, step++) this->low_rank_operands(task, adapters.at(i), copies, step);
  }

  /// This CTA's part of a tile, left in its shared memory.
  GPU_DEVICE void multiply(const ForwardTask& task) const {
    float d[COLUMNS / 2];
    u32 step = 0;
    this->multiply_base(d, this->steps_of_split(task.split * p.split_depth, p.split_depth), step);
    this->add_adapters(d, task, task.split, p.splits, step);
    // All of the other warpgroup's products are done with the ring as well.
    sync_named(2, Tile::multiplying);
    float* mine = sums() + (64 * this->group() + warp_id() % 4 * 16 + lane_id() / 4) * sum_stride + lane_id() % 4 * 2;
#pragma unroll
    for (u32 i = 0; i < COLUMNS / 2; i += 2) {
      float* place = mine + 8 * (i / 2 % 2) * sum_stride + i / 4 * 8;
      place[0] = d[i];
      place[1] = d[i + 1];
    }
  }

  GPU_DEVICE float* sums() const { return reinterpret_cast<float*>(this->ring); }

  GPU_DEVICE void finish(const ForwardTask& task) const {
    if (p.splits == 8) {
      finish_share<8>(task);
    } else if (p.splits == 4) {
      finish_share<4>(task);
    } else if (p.splits == 2) {
      finish_share<2>(task);
    } else {
      finish_share<1>(task);
    }
  }

  /// This CTA's share of the tile's rows, a chunk of columns at a time.
  template <u32 SPLITS>
  GPU_DEVICE void finish_share(const ForwardTask& task) const {
    constexpr u32 chunks = COLUMNS / 8;
    constexpr u32 share = rows / SPLITS * chunks;
    const tile::Epilogue<E> epilogue(p);
    const u32 here = shared_address(sums());
#pragma unroll 1
    for (u32 i = threadIdx.x; i < share; i += threads) {
      const u32 row = task.split * (rows / SPLITS) + i / chunks, column = i % chunks * 8;
      // All on their way before the first is needed.
      Chunk part[SPLITS][2];
#pragma unroll
      for (u32 rank = 0; rank < SPLITS; rank++) {
        const u32 place = map_shared(here, rank) + (row * sum_stride + column) * 4;
        part[rank][0] = load_cluster_chunk(place);
        part[rank][1] = load_cluster_chunk(place + 16);
      }
      float total[8];
#pragma unroll
      for (u32 e = 0; e < 8; e++) {
        total[e] = from_bits(part[0][e / 4].word[e % 4]);
#pragma unroll
        for (u32 rank = 1; rank < SPLITS; rank++) total[e] += from_bits(part[rank][e / 4].word[e % 4]);
      }
      epilogue.store_chunk(total, task.row_tile * rows + row, task.column_tile * COLUMNS + column);
    }
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
