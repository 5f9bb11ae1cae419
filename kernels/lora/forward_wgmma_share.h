// The sums of a tile whose depth the CTAs of a cluster share (sm_90a): where each leaves its own, and how they become rows of y.
//
// Each CTA leaves its sums in its own shared memory, where the ring was, and after the cluster's barrier finishes a share of
// the tile's rows: it adds up the others' sums in the splits' order and sends the rows out.
//
// Shared memory: the stages, which take the sums afterwards, the barriers, and the factors.
// Determinism: the splits' order, whatever CTA comes first.
#pragma once

#include <gpu/cluster.h>
#include <lora/forward_wgmma_tile.h>
#include <tile/epilogue.h>

namespace lora {

template <class E, Along WEIGHT, Along FACTORS, u32 GROUPS, u32 COLUMNS, u32 STAGES, u32 RIDE = 0>
class ForwardWgmmaShare : protected ForwardWgmmaTile<E, WEIGHT, FACTORS, GROUPS, COLUMNS, STAGES, 1, RIDE> {
 protected:
  using Tile = ForwardWgmmaTile<E, WEIGHT, FACTORS, GROUPS, COLUMNS, STAGES, 1, RIDE>;
  using Tile::rows, Tile::p;

 public:
  static constexpr u32 threads = 128 * (GROUPS + 1);

 protected:
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

  GPU_DEVICE ForwardWgmmaShare(const LoraForwardTma& params, Places places)
      : Tile(params, places.ring, places.barriers, places.words + 1, places.factors) {}

  /// Leaves this CTA's part of a tile in its shared memory, once all products of the CTA are done with the ring.
  GPU_DEVICE void leave(const float (&d)[COLUMNS / 2]) const {
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

  /// The cluster's CTAs finish the tile together. All of their threads call it.
  GPU_DEVICE void finish(const ForwardTask& task) const {
    sync_warp();  // one lane of the copying warps went its own way
    cluster_sync();
    finish_share(task);
    cluster_sync();  // nobody leaves while others read its sums
  }

 private:
  GPU_DEVICE void finish_share(const ForwardTask& task) const {
    if (p.splits == 8) {
      finish_rows<8>(task);
    } else if (p.splits == 4) {
      finish_rows<4>(task);
    } else if (p.splits == 2) {
      finish_rows<2>(task);
    } else {
      finish_rows<1>(task);
    }
  }

  /// This CTA's share of the tile's rows, a chunk of columns at a time.
  template <u32 SPLITS>
  GPU_DEVICE void finish_rows(const ForwardTask& task) const {
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
};

}  // namespace lora
