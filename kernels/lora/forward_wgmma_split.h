// lora_forward on wgmma (sm_90a) for few tokens: the CTAs of a cluster split K of one y tile.
//
// Life of a CTA. A cluster has as many CTAs as a y tile has splits, and draws one ticket. For a y tile each CTA multiplies
// its split of K and, where the tile has adapters, every `splits`-th step of T and B; then the CTAs add their sums and store
// the tile (lora/wgmma/cluster_reduce.h). For T each CTA takes one split of a T tile; the splits are added through the
// workspace, since a T tile may have more of them than a cluster has CTAs: it is ready the earlier the more CTAs share it.
//
// Each consumer warpgroup of a CTA multiplies 64 rows; one producer warpgroup fills the ring. CTAs with one consumer
// warpgroup fit an SM in pairs: one keeps memory busy while the other is at the end of its task.
//
// Without adapters there are no tickets, and W0's first stages are requested before the wait for the launch ahead. Bytes in
// flight: up to 192 KiB an SM.
#pragma once

#include <lora/wgmma/cluster_reduce.h>
#include <lora/wgmma/low_rank.h>
#include <lora/wgmma/t_tile.h>
#include <tile/ticket.h>

namespace lora {

/// C is a WgmmaConfig.
template <class C>
class ForwardWgmmaSplit {
 public:
  GPU_DEVICE explicit ForwardWgmmaSplit(const LoraForwardTma& params) : ForwardWgmmaSplit(params, Memory()) {}

  GPU_DEVICE void run() {
    const bool is_producer = warpgroup() == C::groups, copies = warp_id() == 4 * C::groups && elect_one();
    if (threadIdx.x == 0) {
      pipe.init();
      fence_mbarrier_init();
    }
    grid_dependency_launch();
    sync_block();
    u32 ahead = 0;
    if (p.t_tiles == 0 && copies) {
      const ForwardTask task = ForwardTask::of_number(p, blockIdx.x, 0);
      const u32 k = task.split * p.split_depth;
      ahead = pipe.fetch_weight_ahead(task.column_tile * C::columns, k, pipe.steps_of_split(k, p.split_depth));
    }
    sync_warp();
    grid_dependency_wait();
    factors.fetch(p);
    const ForwardTask task = draw();
    if (task.is_t) {
      typename Pipeline<C>::Position at;
      if (is_producer) {
        load_t_operands(pipe, factors, task, copies, at);
      } else {
        compute_t<C, true>(pipe, factors, task, words + 1, at);
      }
      return;
    }
    if (is_producer) {
      produce(task, copies, ahead);
    } else {
      consume(task);
    }
    cluster_reduce(pipe, task);
  }

 private:
  /// One ticket for the whole cluster: all of its CTAs have splits of tiles of T, or all have a split of one tile of y.
  GPU_DEVICE ForwardTask draw() {
    const u32 rank = cluster_rank(), size = cluster_size();
    if (p.t_tiles == 0) {
      sync_block();
      return ForwardTask::of_number(p, blockIdx.x, 0);
    }
    u64 ticket = 0;
    if (rank == 0 && warp_id() == 0) {
      if (lane_id() == 0) {
        ticket = tile::draw_ticket(p.ticket);
        tile::settle_ticket(p.ticket, ticket, gridDim.x / size);
      }
      ticket = shuffle(ticket, 0);
    }
    cluster_sync();  // all CTAs of the cluster have started
    if (rank == 0 && threadIdx.x < size) {
      const u32 place = map_shared(shared_address(words), threadIdx.x);
      store_cluster(place, u32(ticket));
      store_cluster(place + 4, u32(ticket >> 32));
    }
    cluster_sync();
    return ForwardTask::of_number(p, tile::ticket_number(*words) * size + rank, tile::ticket_epoch(*words));
  }

  /// x and W0 of this CTA's part of the depth, then its steps of T and B.
  GPU_DEVICE void produce(const ForwardTask& task, bool copies, u32 ahead) const {
    const u32 first_column = task.column_tile * C::columns, begin = task.split * p.split_depth;
    const u32 base_steps = pipe.steps_of_split(begin, p.split_depth);
    typename Pipeline<C>::Position at;
    if (copies) pipe.fetch_base(task.row_tile * C::rows, first_column, begin, base_steps, at, ahead);
    const auto steps = low_rank_steps<C>(p, first_column);
    const u32 count = steps.count();
    // All other threads skip fetch_base. A wait by parity holds only for a barrier that is at most one phase early: without
    // this barrier these threads could be two phases ahead of the ring.
    if (count > task.split) pipe.sync_producers();
    at.advance_by(base_steps);
    for (u32 i = task.split; i < count; i += p.splits) {
      load_low_rank(pipe, factors, task, steps.at(i), copies, at);
      at.advance();
    }
  }

  /// This CTA's part of a tile, left in its shared memory.
  GPU_DEVICE void consume(const ForwardTask& task) const {
    float d[C::columns / 2];
    typename Pipeline<C>::Position at;
    pipe.multiply_base(d, pipe.steps_of_split(task.split * p.split_depth, p.split_depth), at);
    add_adapters(pipe, d, task, task.split, p.splits, at);
    store_partial(pipe, d);
  }

  struct Memory {
    Chunk* ring;
    u64 *barriers, *words;
    LoraFactors* factors;

    GPU_DEVICE Memory() {
      SharedMemory shared;
      ring = shared.take<Chunk, 1024>(C::stages * C::stage_chunks);
      barriers = shared.take<u64>(2 * C::stages);
      words = shared.take<u64>(2);
      factors = SegmentFactors::take_room(shared);
    }
  };

  GPU_DEVICE ForwardWgmmaSplit(const LoraForwardTma& params, Memory memory)
      : p(params.forward), pipe(params, memory.ring, memory.barriers), factors(memory.factors), words(memory.words) {}

  const LoraForward& p;
  const Pipeline<C> pipe;
  const SegmentFactors factors;
  /// The cluster's ticket, which the producer warpgroup may read late, and a word of a tile of T.
  u64* const words;
};

}  // namespace lora

/// A kernel of this family. WEIGHT and FACTORS are the contiguous dimensions of W0 and of A and B in the product.
#define FORWARD_WGMMA_SPLIT(NAME, E, WEIGHT, FACTORS, TILE)                                                                     \
  GPU_KERNEL(NAME, LoraForwardTma, lora::tiles::TILE::threads, lora::tiles::TILE::ctas) {                         \
    using Config = lora::WgmmaConfig<gpu::E, gpu::Major::WEIGHT, gpu::Major::FACTORS, lora::tiles::TILE>;          \
    lora::ForwardWgmmaSplit<Config>(params).run();                                                                             \
  }
