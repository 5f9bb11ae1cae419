// The ring of stages that brings operands to shared memory in the wgmma kernels (sm_90a), and the main loop, the product of
// x and W0.
//
// One thread of the producer warpgroup issues the TMA copies of x and W0. All threads of the producer warpgroup store A, B
// and T in the ring (lora/wgmma/t_tile.h, lora/wgmma/low_rank.h; for a fused shrink two of its warps): rows of A and B
// belong to several adapters, and those of B may start anywhere.
//
// A stage has two mbarriers. `full` completes when the bytes that the stage expects and C::full_arrivals arrivals have come.
// `empty` completes when all consumer warpgroups that read the stage have released it, with C::ctas = 2 those of both CTAs:
// each CTA of such a cluster fetches half of W0's part of a stage for both, so both take the same steps in the same stages.
#pragma once

#include <gpu/cluster.h>
#include <gpu/grid.h>
#include <gpu/mbarrier.h>
#include <gpu/tma.h>
#include <gpu/warp.h>
#include <gpu/wgmma.h>
#include <lora/forward.h>
#include <lora/wgmma/config.h>

namespace lora {

/// This thread's warpgroup: consumers from 0 on, then the producer.
GPU_DEVICE u32 warpgroup() { return shuffle(threadIdx.x / 128, 0); }

/// A step's place in the ring. Steps are counted through all tasks of a CTA.
template <u32 STAGES>
class RingPosition {
  /// Then stage and parity are bits of the step's number.
  static constexpr bool is_power = (STAGES & (STAGES - 1)) == 0;

 public:
  GPU_DEVICE u32 stage() const { return is_power ? place % STAGES : place; }
  /// Of the phase in which the stage becomes full at this step.
  GPU_DEVICE u32 parity() const { return is_power ? place / STAGES % 2 : odd; }

  /// The stage of the step before.
  GPU_DEVICE u32 previous_stage() const {
    return is_power ? (place - 1) % STAGES : (place == 0 ? STAGES : place) - 1;
  }

  GPU_DEVICE void advance() {
    place++;
    if (!is_power && place == STAGES) {
      place = 0;
      odd ^= 1;
    }
  }

  GPU_DEVICE void advance_by(u32 steps) {
    place += steps;
    if (!is_power) {
      odd = (odd + place / STAGES) % 2;
      place %= STAGES;
    }
  }

 private:
  /// The step or, where STAGES is no power of two, the stage.
  u32 place = 0;
  /// Where STAGES is no power of two: how often the ring has gone round, modulo 2.
  u32 odd = 0;
};

/// C is a WgmmaConfig.
template <class C>
class Pipeline {
 public:
  using E = typename C::E;
  using Position = RingPosition<C::stages>;

  /// `ring` has room for all stages at a multiple of 1024 bytes, `barriers` for two a stage.
  GPU_DEVICE Pipeline(const LoraForwardTma& maps, Chunk* ring, u64* barriers)
      : maps(maps), p(maps.forward), ring(ring), full(shared_address(barriers)), empty(full + 8 * C::stages) {}

  /// By one thread, before others use the ring: a fence and a barrier follow.
  GPU_DEVICE void init() const {
    for (u32 i = 0; i < C::stages; i++) {
      mbarrier_init(full + 8 * i, C::full_arrivals);
      mbarrier_init(empty + 8 * i, C::groups * C::ctas);
    }
  }

  /// A stage's left operand: x or T, in dx dy or Q.
  GPU_DEVICE Chunk* left(u32 stage) const { return ring + stage * C::stage_chunks; }
  /// A stage's right operand: W0, A of a tile of T, or B; in dx W0, B of a tile of Q, or A.
  GPU_DEVICE Chunk* right(u32 stage) const { return left(stage) + C::left_chunks; }
  /// A stage's rows of A beside W0, in the kernel with a fused shrink.
  GPU_DEVICE Chunk* fused_a(u32 stage) const { return left(stage) + C::base_chunks; }

  /// Waits at a barrier that threads of the cluster's other CTA arrive at, too, if there is one.
  static GPU_DEVICE void wait(u32 barrier, u32 parity) {
    if constexpr (C::ctas > 1) {
      mbarrier_wait_cluster(barrier, parity);
    } else {
      mbarrier_wait(barrier, parity);
    }
  }

  /// Arrives at the barrier of the cluster's CTA `rank`.
  static GPU_DEVICE void arrive(u32 barrier, u32 rank) {
    if constexpr (C::ctas > 1) {
      mbarrier_arrive_cluster(map_shared(barrier, rank));
    } else {
      mbarrier_arrive(barrier);
    }
  }

  /// Steps of a split of the depth that begins at `begin`.
  GPU_DEVICE u32 steps_of_split(u32 begin, u32 split_depth) const {
    return begin < p.depth ? (gpu::min(split_depth, p.depth - begin) + C::depth - 1) / C::depth : 0;
  }

  // --- Producer.

  GPU_DEVICE void await_empty(Position at) const { wait(empty + 8 * at.stage(), at.parity() ^ 1); }

  /// By one thread: fetches x and W0 from depth `k` on. W0 of the first `ahead` steps is under way already.
  GPU_DEVICE void fetch_base(u32 first_row, u32 first_column, u32 k, u32 steps, Position at, u32 ahead = 0) const {
#pragma unroll 1
    for (u32 i = 0; i < steps; i++, k += C::depth) {
      if (i >= ahead) {
        await_empty(at);
        fetch_weight(at.stage(), k, first_column);
      }
      fetch_x(at.stage(), k, first_row);
      at.advance();
    }
  }

  /// By one thread: fetches W0 of the first steps, as many as the ring has stages. No launch that may overlap with this one
  /// writes W0, so this may come before the wait for the launch ahead. Returns how many.
  GPU_DEVICE u32 fetch_weight_ahead(u32 first_column, u32 k, u32 steps) const {
    const u32 ahead = gpu::min(steps, C::stages);
#pragma unroll 1
    for (u32 i = 0; i < ahead; i++) fetch_weight(i, k + i * C::depth, first_column);
    return ahead;
  }

  /// Tells the stage's barrier of all bytes that x and W0 will bring, and fetches W0.
  GPU_DEVICE void fetch_weight(u32 stage, u32 k, u32 first_column) const {
    mbarrier_arrive_expect(full + 8 * stage, C::base_chunks * sizeof(Chunk));
    constexpr u32 share = C::columns / C::ctas;
    const u32 mine = C::ctas > 1 ? cluster_rank() * share : 0;
    if constexpr (C::weight == Major::K) {
      fetch_box(stage, mine, k, first_column + mine);
    } else {
#pragma unroll
      for (u32 column = 0; column < share; column += 64) {
        fetch_box(stage, mine + column, first_column + mine + column, k);
      }
    }
  }

  GPU_DEVICE void fetch_x(u32 stage, u32 k, u32 first_row) const {
    tma_load_2d(shared_address(left(stage)), &maps.x, full + 8 * stage, i32(k), i32(first_row));
  }

  /// By one thread: fetches x alone, for a tile of T.
  GPU_DEVICE void fetch_x_alone(u32 stage, u32 k, u32 first_row) const {
    mbarrier_expect(full + 8 * stage, C::left_chunks * sizeof(Chunk));
    fetch_x(stage, k, first_row);
  }

  /// By all threads of the producer warpgroup, behind what they stored in a stage: fences it for wgmma's proxy; then one
  /// thread, which `copies`, arrives for all.
  GPU_DEVICE void commit_stores(u32 stage, bool copies) const {
    fence_proxy_async_shared();
    sync_producers();
    if (copies) mbarrier_arrive(full + 8 * stage);
  }

  /// One lane of a warp may have issued copies alone: the warp reconverges before the barrier, which takes whole warps.
  static GPU_DEVICE void sync_producers() {
    sync_warp();
    sync_named(NamedBarrier::producers, 128);
  }

  /// By one thread: `count` arrivals at a stage's barrier `full`.
  GPU_DEVICE void arrive_full(u32 stage, u32 count) const {
    for (u32 i = 0; i < count; i++) mbarrier_arrive(full + 8 * stage);
  }

  // --- Consumers.

  GPU_DEVICE void await_full(Position at) const { mbarrier_wait(full + 8 * at.stage(), at.parity()); }

  /// Gives a stage back, behind the wait for its products, which are those of the whole warpgroup.
  GPU_DEVICE void release(u32 stage) const {
    if (threadIdx.x % 128 != 0) return;
#pragma unroll
    for (u32 rank = 0; rank < C::ctas; rank++) arrive(empty + 8 * stage, rank);
  }

  /// This warpgroup's 64 rows of the left operand, 16 of the depth.
  GPU_DEVICE u64 left_descriptor(u32 stage, u32 k) const {
    const u32 address = shared_address(left(stage)) + warpgroup() * 64 * C::row_bytes;
    return wgmma_descriptor(address, 0, 8 * C::row_bytes) + 2 * k;
  }

  /// A K-major right operand, from row `row` on.
  GPU_DEVICE u64 right_descriptor(u32 stage, u32 row, u32 k) const {
    return wgmma_descriptor(shared_address(right(stage)) + row * C::row_bytes, 0, 8 * C::row_bytes) + 2 * k;
  }

  /// An MN-major right operand: panels of 64 columns whose rows lie across the depth.
  GPU_DEVICE u64 panel_descriptor(u32 stage, u32 panel, u32 k) const {
    const u32 address = shared_address(right(stage)) + panel * 64 * C::row_bytes;
    return wgmma_descriptor(address, 64 * C::row_bytes, 8 * C::row_bytes) + k * (16 * C::row_bytes / 16);
  }

  /// W0, as it lies.
  GPU_DEVICE u64 weight_descriptor(u32 stage, u32 k) const {
    if constexpr (C::weight == Major::K) {
      return right_descriptor(stage, 0, k);
    } else {
      return panel_descriptor(stage, 0, k);
    }
  }

  /// The main loop: d = x·W0ᵀ over `steps` steps, at least one. A stage is released one step later, when its products are done.
  GPU_DEVICE void multiply_base(float (&d)[C::columns / 2], u32 steps, Position& at) const {
#pragma unroll 1
    for (u32 i = 0; i < steps; i++) {
      await_full(at);
      wgmma_fence();
#pragma unroll
      for (u32 k = 0; k < C::depth / 16; k++) {
        const u64 a = left_descriptor(at.stage(), k), b = weight_descriptor(at.stage(), k);
        wgmma_m64k16<E, C::columns, Major::K, C::weight>(d, a, b, i != 0 || k != 0);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (i != 0) release(at.previous_stage());
      at.advance();
    }
    wgmma_wait<0>();
    wgmma_fence_operands(d);
    release(at.previous_stage());
  }

  const LoraForwardTma& maps;
  const LoraForward& p;
  Chunk* const ring;

 private:
  /// Part of W0, to the columns from `column` on of the tile.
  GPU_DEVICE void fetch_box(u32 stage, u32 column, u32 x, u32 y) const {
    const u32 place = shared_address(right(stage) + column * C::row_chunks), barrier = full + 8 * stage;
    if constexpr (C::ctas > 1) {
      tma_load_2d_multicast(place, &maps.weight, barrier, i32(x), i32(y), (1 << C::ctas) - 1);
    } else {
      tma_load_2d_constant(place, &maps.weight, barrier, i32(x), i32(y));
    }
  }

  u32 full, empty;
};

/// A warp's first row of y or T.
template <class C>
GPU_DEVICE u32 warp_row(const ForwardTask& task) {
  return task.row_tile * C::rows + 64 * warpgroup() + warp_id() % 4 * 16;
}

/// The steps by which the adapters deepen a tile of y.
template <class C>
GPU_DEVICE LowRankSteps<C::depth> low_rank_steps(const LoraForward& p, u32 first_column) {
  return LowRankSteps<C::depth>::template of<C::factors>(p, first_column, gpu::min(first_column + C::columns, p.columns));
}

}  // namespace lora
