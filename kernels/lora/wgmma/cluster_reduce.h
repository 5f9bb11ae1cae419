// Split-K of a y tile within a cluster (sm_90a): the CTAs' sums are added, pass the epilogue and are stored.
//
// Each CTA leaves its sums in its own shared memory, in place of the ring. After a barrier of the cluster each CTA finishes
// a share of the tile's rows: it reads all CTAs' sums through distributed shared memory, adds them in the order of the
// splits, and stores the rows.
//
// Determinism: the sums are added in the order of the splits, whichever CTA comes first.
#pragma once

#include <gpu/cluster.h>
#include <lora/wgmma/pipeline.h>
#include <tile/epilogue.h>

namespace lora {

/// Floats from a row of the sums to the next. Rows lie 8 banks apart, so that the four rows to which a half-warp stores 8
/// bytes a lane meet 32 different banks.
template <class C>
constexpr u32 sum_stride = C::columns + 8;

template <class C>
GPU_DEVICE float* sums_of_cta(const Pipeline<C>& pipe) {
  static_assert(C::rows * sum_stride<C> * sizeof(float) <= C::stages * C::stage_chunks * sizeof(Chunk), "the sums fit the ring");
  return reinterpret_cast<float*>(pipe.ring);
}

/// By the consumers: leaves this CTA's part of a tile, once no product reads the ring any more.
template <class C>
GPU_DEVICE void store_partial(const Pipeline<C>& pipe, const float (&d)[C::columns / 2]) {
  sync_named(NamedBarrier::consumers, C::consumer_threads);
  const u32 row = 64 * warpgroup() + warp_id() % 4 * 16 + lane_id() / 4;
  float* mine = sums_of_cta(pipe) + row * sum_stride<C> + lane_id() % 4 * 2;
#pragma unroll
  for (u32 i = 0; i < C::columns / 2; i += 2) {
    float* place = mine + 8 * (i / 2 % 2) * sum_stride<C> + i / 4 * 8;
    place[0] = d[i];
    place[1] = d[i + 1];
  }
}

/// This CTA's share of the tile's rows, a chunk of columns at a time.
template <u32 SPLITS, class C>
GPU_DEVICE void reduce_rows(const Pipeline<C>& pipe, const ForwardTask& task) {
  constexpr u32 chunks = C::columns / 8, rows = C::rows / SPLITS;
  const tile::Epilogue<typename C::E> epilogue(pipe.p);
  const u32 here = shared_address(sums_of_cta(pipe));
#pragma unroll 1
  for (u32 i = threadIdx.x; i < rows * chunks; i += C::threads) {
    const u32 row = task.split * rows + i / chunks, column = i % chunks * 8;
    // All loads are issued before the first result is needed.
    Chunk part[SPLITS][2];
#pragma unroll
    for (u32 rank = 0; rank < SPLITS; rank++) {
      const u32 place = map_shared(here, rank) + (row * sum_stride<C> + column) * 4;
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
    epilogue.store_chunk(total, task.row_tile * C::rows + row, task.column_tile * C::columns + column);
  }
}

/// The cluster's CTAs finish the tile together. All of their threads call it.
template <class C>
GPU_DEVICE void cluster_reduce(const Pipeline<C>& pipe, const ForwardTask& task) {
  sync_warp();  // one lane of a producer warp issued the copies alone
  cluster_sync();
  if (pipe.p.splits == 8) {
    reduce_rows<8>(pipe, task);
  } else if (pipe.p.splits == 4) {
    reduce_rows<4>(pipe, task);
  } else if (pipe.p.splits == 2) {
    reduce_rows<2>(pipe, task);
  } else {
    reduce_rows<1>(pipe, task);
  }
  cluster_sync();  // a CTA's shared memory stays until the others have read it
}

}  // namespace lora
