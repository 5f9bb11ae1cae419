// What the forward kernels on wgmma (sm_90a) share: a ring of stages in shared memory, a warpgroup that fills it, and one
// or two that multiply 64 rows of a tile each. Here: the ring, x and W0 on their way through it, and their product.
//
// The copy engine fetches x and W0. What else goes through the ring (lora/forward_wgmma_shrink.h, lora/forward_wgmma_tile.h), the
// copying warpgroup's threads store there.
#pragma once

#include <gpu/cluster.h>
#include <gpu/grid.h>
#include <gpu/mbarrier.h>
#include <gpu/tma.h>
#include <gpu/warp.h>
#include <gpu/wgmma.h>
#include <lora/forward.h>
#include <tile/staged.h>

namespace lora {

/// GROUPS warpgroups multiply, the next one copies. A stage is 64 of the depth of 64·GROUPS rows and of COLUMNS columns, and of
/// RIDE rows of A where these ride along (lora/forward_wgmma_ride.h): then it is full when both who fetch say so.
///
/// With CTAS = 2 the CTAs of a cluster fetch half of W0's part each, for both. They take the same steps at the same stages,
/// and a stage is empty when the warpgroups of both have released it.
template <class E, Along WEIGHT, Along FACTORS, u32 GROUPS, u32 COLUMNS, u32 STAGES, u32 CTAS = 1, u32 RIDE = 0>
class ForwardWgmmaRing {
 public:
  static constexpr u32 rows = 64 * GROUPS, depth = 64, stages = STAGES, multiplying = 128 * GROUPS;
  static constexpr u32 row_chunks = depth / 8, row_bytes = 2 * depth;
  static constexpr u32 left_chunks = rows * row_chunks, base_chunks = left_chunks + COLUMNS * row_chunks;
  static constexpr u32 stage_chunks = base_chunks + RIDE * row_chunks, fetchers = RIDE == 0 ? 1 : 2;
  static constexpr u32 t_columns = LORA_FORWARD_T_COLUMNS, parts = COLUMNS / 64;
  static_assert(COLUMNS % 64 == 0 && t_columns == 64, "columns come 64 at a time");

 protected:
  /// `ring` has room for all stages at a multiple of 1024 bytes, `barriers` for two a stage, `word` for one, `factors` for all.
  GPU_DEVICE ForwardWgmmaRing(const LoraForwardTma& params, Chunk* ring, u64* barriers, u64* word,
                              LoraFactors* factors)
      : maps(params),
        p(params.forward),
        ring(ring),
        word(word),
        factors(factors),
        full(shared_address(barriers)),
        empty(full + 8 * stages) {}

  /// By one thread, before anybody uses the ring: a fence and a barrier follow.
  GPU_DEVICE void init_ring() const {
    for (u32 i = 0; i < stages; i++) {
      mbarrier_init(full + 8 * i, fetchers);
      mbarrier_init(empty + 8 * i, GROUPS * CTAS);
    }
  }

  GPU_DEVICE Chunk* left(u32 stage) const { return ring + stage * stage_chunks; }
  GPU_DEVICE Chunk* right(u32 stage) const { return left(stage) + left_chunks; }

  // Barriers that the cluster's other CTA may arrive at.
  static GPU_DEVICE void wait(u32 barrier, u32 parity) {
    if constexpr (CTAS > 1) {
      mbarrier_wait_cluster(barrier, parity);
    } else {
      mbarrier_wait(barrier, parity);
    }
  }
  static GPU_DEVICE void arrive(u32 barrier, u32 rank) {
    if constexpr (CTAS > 1) {
      mbarrier_arrive_cluster(map_shared(barrier, rank));
    } else {
      mbarrier_arrive(barrier);
    }
  }

  static GPU_DEVICE u32 group() { return shuffle(threadIdx.x / 128, 0); }

  /// Steps from `begin` on in a split of the depth.
  GPU_DEVICE u32 steps_of_split(u32 begin, u32 split_depth) const {
    return begin < p.depth ? (gpu::min(split_depth, p.depth - begin) + depth - 1) / depth : 0;
  }
  GPU_DEVICE LowRankSteps<depth> low_rank(u32 first_column) const {
    return LowRankSteps<depth>::template of<FACTORS>(p, first_column, gpu::min(first_column + COLUMNS, p.columns));
  }

  // --- The warpgroup that copies.

  GPU_DEVICE void await_empty(u32 step) const { wait(empty + 8 * (step % stages), step / stages % 2 ^ 1); }

  /// By one thread: x and W0 from depth `k` on. Of the first `ahead` steps W0 is on its way already.
  GPU_DEVICE void base_operands(u32 first_row, u32 first_column, u32 k, u32 steps, u32 step, u32 ahead = 0) const {
#pragma unroll 1
    for (u32 i = 0; i < steps; i++, step++, k += depth) {
      const u32 stage = step % stages;
      if (i >= ahead) {
        await_empty(step);
        fetch_weight(stage, k, first_column);
      }
      fetch_x(stage, k, first_row);
    }
  }

  /// By one thread: W0 of the first steps, as many as the ring takes, which no launch ahead writes. Returns how many.
  GPU_DEVICE u32 weight_ahead(u32 first_column, u32 k, u32 steps) const {
    const u32 ahead = gpu::min(steps, stages);
#pragma unroll 1
    for (u32 i = 0; i < ahead; i++) fetch_weight(i, k + i * depth, first_column);
    return ahead;
  }

  /// With what the stage's barrier waits for: all of x and W0.
  GPU_DEVICE void fetch_weight(u32 stage, u32 k, u32 first_column) const {
    mbarrier_arrive_expect(full + 8 * stage, base_chunks * sizeof(Chunk));
    constexpr u32 share = COLUMNS / CTAS;
    const u32 mine = CTAS > 1 ? cluster_rank() * share : 0;
    if constexpr (WEIGHT == Along::Depth) {
      fetch_box(stage, mine, k, first_column + mine);
    } else {
#pragma unroll
      for (u32 column = 0; column < share; column += 64) {
        fetch_box(stage, mine + column, first_column + mine + column, k);
      }
    }
  }

  /// What goes to the tile's column `column` and the next ones.
  GPU_DEVICE void fetch_box(u32 stage, u32 column, u32 x, u32 y) const {
    const u32 place = shared_address(right(stage) + column * row_chunks), barrier = full + 8 * stage;
    if constexpr (CTAS > 1) {
      tma_load_2d_multicast(place, &maps.weight, barrier, i32(x), i32(y), (1 << CTAS) - 1);
    } else {
      tma_load_2d_constant(place, &maps.weight, barrier, i32(x), i32(y));
    }
  }

  GPU_DEVICE void fetch_x(u32 stage, u32 k, u32 first_row) const {
    tma_load_2d(shared_address(left(stage)), &maps.x, full + 8 * stage, i32(k), i32(first_row));
  }

  /// What the warpgroup's threads stored is for wgmma to read: its proxy's fence by each, then one arrival for all.
  GPU_DEVICE void hand_over(u32 stage, bool copies) const {
    fence_proxy_async_shared();
    together();
    if (copies) mbarrier_arrive(full + 8 * stage);
  }

  /// The barrier takes whole warps, of which one has a lane that went its own way.
  static GPU_DEVICE void together() {
    sync_warp();
    sync_named(1, 128);
  }

  // --- The warpgroups that multiply.

  GPU_DEVICE void await_full(u32 step) const { mbarrier_wait(full + 8 * (step % stages), step / stages % 2); }

  /// The products with a stage are done in all of the warpgroup: so says the wait, which all its warps make.
  GPU_DEVICE void release(u32 step) const {
    if (threadIdx.x % 128 != 0) return;
#pragma unroll
    for (u32 rank = 0; rank < CTAS; rank++) arrive(empty + 8 * (step % stages), rank);
  }

  /// This warpgroup's 64 rows of the left operand, 16 of the depth.
  GPU_DEVICE u64 left_descriptor(u32 stage, u32 k) const {
    const u32 address = shared_address(left(stage)) + group() * 64 * row_bytes;
    return wgmma_descriptor(address, 0, 8 * row_bytes) + 2 * k;
  }

  /// Right operand whose rows run along the depth, from row `row` on.
  GPU_DEVICE u64 right_descriptor(u32 stage, u32 row, u32 k) const {
    return wgmma_descriptor(shared_address(right(stage)) + row * row_bytes, 0, 8 * row_bytes) + 2 * k;
  }

  /// The weight: the same, or panels of 64 columns whose rows run across the depth.
  GPU_DEVICE u64 weight_descriptor(u32 stage, u32 k) const {
    if constexpr (WEIGHT == Along::Depth) {
      return right_descriptor(stage, 0, k);
    } else {
      return panel_descriptor(stage, 0, k);
    }
  }

  GPU_DEVICE u64 panel_descriptor(u32 stage, u32 panel, u32 k) const {
    const u32 address = shared_address(right(stage)) + panel * 64 * row_bytes;
    return wgmma_descriptor(address, 64 * row_bytes, 8 * row_bytes) + k * (16 * row_bytes / 16);
  }

  /// A warp's first row of y or T.
  static GPU_DEVICE u32 warp_row(const ForwardTask& task) {
    return task.row_tile * rows + 64 * group() + warp_id() % 4 * 16;
  }

  /// d = x·W0ᵀ over `steps` steps, at least one.
  GPU_DEVICE void multiply_base(float (&d)[COLUMNS / 2], u32 steps, u32& step) const {
#pragma unroll 1
    for (u32 i = 0; i < steps; i++, step++) {
      await_full(step);
      wgmma_fence();
#pragma unroll
      for (u32 k = 0; k < depth / 16; k++) {
        constexpr Major major = WEIGHT == Along::Depth ? Major::K : Major::MN;
        const u64 a = left_descriptor(step % stages, k), b = weight_descriptor(step % stages, k);
        wgmma_m64k16<E, COLUMNS, Major::K, major>(d, a, b, i != 0 || k != 0);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (i != 0) release(step - 1);
    }
    wgmma_wait<0>();
    wgmma_hold(d);
    release(step - 1);
  }

  const LoraForwardTma& maps;
  const LoraForward& p;
  Chunk* ring;
  u64* word;
  SegmentFactors factors;
  u32 full, empty;
};

}  // namespace lora
