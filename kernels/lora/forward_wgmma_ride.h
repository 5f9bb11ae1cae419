// lora_forward on wgmma (sm_90a) for few tokens and low ranks: A rides along with the weight.
//
//   y = Σ over the cluster's CTAs of ( x_k W0_kᵀ + s·(x_k A_kᵀ) Bᵀ ),   x_k, W0_k, A_k: a CTA's part of the depth
//
// Who does what. As in lora/forward_wgmma_split.h, but no tile of T is anybody's: up to RIDE rows of A, those of all segments,
// are so many more columns of every tile. A CTA's part of T stays in the registers of the warps that summed it up, is
// rounded there, and is the left operand of one last product with B. So T is no tile that others wait for: there are no
// tickets, no flags and no workspace, and what a tile takes longer than without adapters is RIDE / COLUMNS more products, which
// hide behind the weight's bytes, and in its segments' columns those with B at the end. That T is summed up again for every tile of columns costs A from L2.
//
// Of the copying warpgroup one warp has x and W0 fetched, two gather A and then B. The weight's first stages are on their way
// before the launch ahead has ended.
//
// s·T is rounded to the operands' type in each CTA's part: what that is off by is u·Σ|s·T_part||B|. In f16 a part may be beyond
// the largest number where their sum is not.
// Bytes: those of lora/forward_wgmma_split.h, less T's, and A once a tile of columns. Determinism: as there.
#pragma once

#include <lora/forward_wgmma_share.h>

namespace lora {

template <class E, Along WEIGHT, u32 GROUPS, u32 COLUMNS, u32 STAGES>
class ForwardWgmmaRide : ForwardWgmmaShare<E, WEIGHT, Along::Depth, GROUPS, COLUMNS, STAGES, LORA_FORWARD_RIDE> {
  using Share = ForwardWgmmaShare<E, WEIGHT, Along::Depth, GROUPS, COLUMNS, STAGES, LORA_FORWARD_RIDE>;
  using typename Share::Places, typename Share::Tile;
  using Tile::rows, Tile::depth, Tile::stages, Tile::row_chunks, Tile::p;

 public:
  GPU_DEVICE explicit ForwardWgmmaRide(const LoraForwardTma& params) : ForwardWgmmaRide(params, Places()) {}

  GPU_DEVICE void run() {
    if (threadIdx.x == 0) {
      this->init_ring();
      fence_mbarrier_init();
    }
    grid_dependency_launch();
    sync_block();
    const ForwardTask task = ForwardTask::of_number(p, blockIdx.x, 0);
    const u32 first_column = task.column_tile * COLUMNS, begin = task.split * p.split_depth;
    const u32 steps = this->steps_of_split(begin, p.split_depth);
    const bool fetches = warp_id() == fetching_warp && elect_one();
    u32 ahead = 0;
    if (fetches) ahead = this->weight_ahead(first_column, begin, steps);
    sync_warp();
    grid_dependency_wait();
    // Who fetches x and W0 waits for nobody: a slot's loads are hidden behind theirs.
    if (warp_id() >= fetching_warp) {
      if (fetches) this->base_operands(task.row_tile * rows, first_column, begin, steps, 0, ahead);
    } else {
      this->factors.fetch(p);
      sync_named(3, Tile::multiplying + gatherers);
      if (warp_id() < 4 * GROUPS) {
        multiply(task, steps);
      } else {
        gather(task, begin, steps);
      }
    }
    this->finish(task);
  }

 private:
  static constexpr u32 ride = LORA_FORWARD_RIDE, ride_chunks = ride / 8;
  static constexpr u32 gatherers = 64, fetching_warp = 4 * GROUPS + gatherers / warp_size;
  /// Columns that meet B at a time: two CTAs an SM leave no registers for more.
  static constexpr u32 width = GROUPS == 1 ? 32 : 64;
  static_assert(ride == 32, "two products of 16 of the rank with B");

  GPU_DEVICE ForwardWgmmaRide(const LoraForwardTma& params, Places places) : Share(params, places) {}

  /// Behind the weight's part of a stage.
  GPU_DEVICE Chunk* riding(u32 stage) const { return this->right(stage) + COLUMNS * row_chunks; }

  /// Whether the tile from a column on has columns of a segment.
  GPU_DEVICE bool concerns(const LoraSegment& segment, u32 first_column) const {
    return segment.begin < gpu::min(first_column + COLUMNS, p.columns) && segment.end > first_column;
  }

  // --- The warps that gather.

  /// A for every step, always `ahead` of them on their way in registers; then B, if the tile has columns of a segment.
  GPU_DEVICE void gather(const ForwardTask& task, u32 begin, u32 steps) const {
    constexpr u32 count = ride * row_chunks / gatherers, rows_apart = gatherers / row_chunks, ahead = 4;
    const u32 thread = threadIdx.x - 128 * GROUPS, row = thread / row_chunks, chunk = thread % row_chunks;
    const u32 first_column = task.column_tile * COLUMNS;
    const E* a[count];
#pragma unroll
    for (u32 i = 0; i < count; i++) {
      const u32 t_column = row + i * rows_apart;
      a[i] = t_column < p.t_stride ? a_row<E>(p, this->factors, t_column) : nullptr;
    }
    Chunk coming[ahead][count];
    const auto ask = [&](Chunk(&into)[count], u32 step) {
      const u32 k = begin + step * depth + 8 * chunk;
#pragma unroll
      for (u32 i = 0; i < count; i++) {
        into[i] = tile::zero_chunk;
        if (a[i] && step < steps && k < p.depth) into[i] = load_constant(reinterpret_cast<const Chunk*>(a[i] + k));
      }
    };
#pragma unroll
    for (u32 i = 0; i < ahead; i++) ask(coming[i], i);
    ask_for_b(first_column, thread);
#pragma unroll 1
    for (u32 step = 0; step < steps; step += ahead) {
#pragma unroll
      for (u32 s = 0; s < ahead; s++) {
        if (step + s >= steps) break;
        this->await_empty(step + s);
        Chunk* stage = riding((step + s) % stages);
#pragma unroll
        for (u32 i = 0; i < count; i++) {
          store_shared(stage + tile::swizzled<row_chunks>(row + i * rows_apart, chunk), coming[s][i]);
        }
        ask(coming[s], step + s + ahead);
        hand_over(step + s, thread, 1);
      }
    }
    if (this->low_rank(first_column).count() == 0) return;
    this->await_empty(steps);
    store_b(first_column, steps % stages, thread);
    hand_over(steps, thread, Tile::fetchers);
  }

  /// B's rows are needed last: they come to L2 meanwhile.
  GPU_DEVICE void ask_for_b(u32 first_column, u32 thread) const {
    for (u32 s = 0; s < p.segment_count; s++) {
      const LoraSegment& segment = p.segments[s];
      const LoraFactors& own = this->factors[s];
      for (u32 i = thread; i < COLUMNS; i += gatherers) {
        const u32 column = first_column + i;
        if (column < segment.begin || column >= segment.end || own.rank == 0) continue;
        prefetch_l2(static_cast<const E*>(own.b) + u64(column - segment.begin) * own.b_stride);
      }
    }
  }

  /// B for all columns of T, zeros in columns outside its segment.
  GPU_DEVICE void store_b(u32 first_column, u32 stage, u32 thread) const {
#pragma unroll 1
    for (u32 i = thread; i < COLUMNS * ride_chunks; i += gatherers) {
      const u32 row = i / ride_chunks, chunk = i % ride_chunks, column = first_column + row;
      const u32 s = segment_of(p, 8 * chunk);
      const LoraSegment& segment = p.segments[s];
      const LoraFactors& own = this->factors[s];
      Chunk b = tile::zero_chunk;
      if (8 * chunk < p.t_stride && column >= segment.begin && column < segment.end) {
        const E* source = static_cast<const E*>(own.b) + u64(column - segment.begin) * own.b_stride;
        const u32 first = 8 * chunk - segment.t_begin;
        b = tile::rows_are_aligned<E>(own.b, own.b_stride) && own.rank % 8 == 0
                ? tile::load_weight<E, true>(source, first, own.rank)
                : tile::load_weight<E, false>(source, first, own.rank);
      }
      store_shared(this->right(stage) + tile::swizzled<row_chunks>(row, chunk), b);
    }
  }

  /// What the gathering warps stored is for wgmma to read: its proxy's fence by each, then one thread's arrivals.
  GPU_DEVICE void hand_over(u32 step, u32 thread, u32 arrivals) const {
    fence_proxy_async_shared();
    sync_named(1, gatherers);
    if (thread != 0) return;
    for (u32 i = 0; i < arrivals; i++) mbarrier_arrive(this->full + 8 * (step % stages));
  }

  // --- The warpgroups that multiply.

  /// This CTA's part of a tile.
  GPU_DEVICE void multiply(const ForwardTask& task, u32 steps) const {
    float d[COLUMNS / 2], t[ride / 2];
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
      this->await_full(step);
      wgmma_fence();
#pragma unroll
      for (u32 k = 0; k < depth / 16; k++) {
        constexpr Major major = WEIGHT == Along::Depth ? Major::K : Major::MN;
        const u32 stage = step % stages;
        const u64 left = this->left_descriptor(stage, k);
        wgmma_m64k16<E, COLUMNS, Major::K, major>(d, left, this->weight_descriptor(stage, k), step != 0 || k != 0);
        wgmma_m64k16<E, ride, Major::K, Major::K>(t, left, riding_descriptor(stage, k), step != 0 || k != 0);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (step != 0) this->release(step - 1);
    }
    wgmma_wait<0>();
    wgmma_hold(d);
    wgmma_hold(t);
    this->release(steps - 1);

    const u32 first_column = task.column_tile * COLUMNS;
    if (this->low_rank(first_column).count() != 0) {
      this->await_full(steps);
      add<0>(d, t, first_column, steps % stages);
      add<1>(d, t, first_column, steps % stages);
    }
    this->leave(d);
  }

  GPU_DEVICE u64 riding_descriptor(u32 stage, u32 k) const {
    return wgmma_descriptor(shared_address(riding(stage)), 0, 8 * Tile::row_bytes) + 2 * k;
  }

  /// d += s·T·Bᵀ for the INDEX-th 16 columns of T, which are one segment's.
  template <u32 INDEX>
  GPU_DEVICE void add(float (&d)[COLUMNS / 2], const float (&t)[ride / 2], u32 first_column, u32 stage) const {
    if (16 * INDEX >= p.t_stride) return;
    const u32 s = segment_of(p, 16 * INDEX);
    const LoraSegment& segment = p.segments[s];
    if (!concerns(segment, first_column)) return;
    const u32 begin = gpu::max(segment.begin, first_column) - first_column, end = segment.end - first_column;
    const float scale = this->factors[s].scale;
    // Sums of 64 rows and 16 columns lie in a warp's registers as the left operand does.
    u32 left[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) left[i] = pack<E>(scale * t[8 * INDEX + 2 * i], scale * t[8 * INDEX + 2 * i + 1]);
#pragma unroll
    for (u32 first = 0; first < COLUMNS; first += width) {
      if (first >= end || first + width <= begin) continue;
      float sum[width / 2];
#pragma unroll
      for (u32 i = 0; i < width / 2; i++) sum[i] = d[first / 2 + i];
      wgmma_hold(sum);
      wgmma_hold(left);
      wgmma_fence();
      wgmma_m64k16_registers<E, width, Major::K>(sum, left, this->right_descriptor(stage, first, INDEX), 1);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_hold(sum);
#pragma unroll
      for (u32 i = 0; i < width / 2; i++) {
        const u32 column = first + i / 4 * 8 + lane_id() % 4 * 2 + i % 2;
        if (column >= begin && column < end) d[first / 2 + i] = sum[i];
      }
    }
  }
};

}  // namespace lora

#define FORWARD_WGMMA_RIDE_TILE(LAYOUT, ALONG, E, GROUPS, TILE, COLUMNS, STAGES, MIN_CTAS)                 \
  GPU_KERNEL(lora_forward_##LAYOUT##_wgmma_##E##_##TILE, LoraForwardTma, 128 * (GROUPS + 1), MIN_CTAS) {   \
    lora::ForwardWgmmaRide<gpu::E, tile::Along::ALONG, GROUPS, COLUMNS, STAGES>(params).run();             \
  }

#define FORWARD_WGMMA_RIDE(E)                                          \
  FORWARD_WGMMA_RIDE_TILE(rows, Depth, E, 1, m64n64r, 64, 5, 2)        \
  FORWARD_WGMMA_RIDE_TILE(rows, Depth, E, 1, m64n128r, 128, 4, 2)      \
  FORWARD_WGMMA_RIDE_TILE(rows, Depth, E, 2, m128n128r, 128, 6, 1)     \
  FORWARD_WGMMA_RIDE_TILE(columns, Columns, E, 1, m64n64r, 64, 5, 2)   \
  FORWARD_WGMMA_RIDE_TILE(columns, Columns, E, 1, m64n128r, 128, 4, 2) \
  FORWARD_WGMMA_RIDE_TILE(columns, Columns, E, 2, m128n128r, 128, 6, 1)
