// lora_forward on wgmma (sm_90a) for few tokens and low ranks: the shrink is fused into the main loop.
//
//   y = Σ over the cluster's CTAs of ( x_k W0_kᵀ + s·(x_k A_kᵀ) Bᵀ ),   x_k, W0_k, A_k: a CTA's split of K
//
// Life of a CTA. As in lora/forward_wgmma_split.h, but there are no T tiles. The main loop of a y tile also multiplies x
// with A of all segments, in 32 columns (`fused rank` in lora/tiles.h) beside those of W0. A CTA's part of T stays in the
// registers of the warps that summed it: they round it, and it is the left operand of a last product with B. So there are no
// tickets, no flags and no workspace.
//
// Extra cost: fused rank / columns more MMAs in the main loop, which hide behind W0's bytes, and the products with B in
// tiles that have columns of a segment. Every y tile computes T of its rows again and reads A from L2.
//
// In the producer warpgroup one warp issues the TMA copies of x and W0, and two warps gather A, then B. W0's first stages
// are requested before the wait for the launch ahead.
//
// Each CTA rounds its part of s·T to the operands' type: the error is u·Σ|s·T_part||B|. In f16 a part may overflow where the
// sum of the parts does not.
// Bytes: those of lora/forward_wgmma_split.h without T's, and A once a y tile. Determinism: as there.
#pragma once

#include <lora/wgmma/cluster_reduce.h>
#include <lora/wgmma/pipeline.h>

namespace lora {

/// C is a WgmmaConfig of the forward pass with a fused rank.
template <class C>
class ForwardWgmmaFused {
  using E = typename C::E;
  using Position = typename Pipeline<C>::Position;

 public:
  GPU_DEVICE explicit ForwardWgmmaFused(const LoraForwardTma& params) : ForwardWgmmaFused(params, Memory()) {}

  GPU_DEVICE void run() {
    if (threadIdx.x == 0) {
      pipe.init();
      fence_mbarrier_init();
    }
    grid_dependency_launch();
    sync_block();
    const ForwardTask task = ForwardTask::of_number(p, blockIdx.x, 0);
    const u32 first_column = task.column_tile * C::columns, begin = task.split * p.split_depth;
    const u32 steps = pipe.steps_of_split(begin, p.split_depth);
    const bool copies = warp_id() == copying_warp && elect_one();
    u32 ahead = 0;
    if (copies) ahead = pipe.fetch_weight_ahead(first_column, begin, steps);
    sync_warp();
    grid_dependency_wait();
    // The copying warp does not wait for the factors: a slot's loads are hidden behind those of x and W0.
    if (warp_id() >= copying_warp) {
      if (copies) pipe.fetch_base(task.row_tile * C::rows, first_column, begin, steps, Position(), ahead);
    } else {
      factors.fetch(p);
      sync_named(NamedBarrier::factors, C::consumer_threads + gatherers);
      if (warp_id() < 4 * C::groups) {
        consume(task, steps);
      } else {
        gather(task, begin, steps);
      }
    }
    cluster_reduce(pipe, task);
  }

 private:
  /// Columns of T that every tile computes, and chunks in a row of them.
  static constexpr u32 t_width = C::a_rows, t_chunks = t_width / 8;
  static_assert(t_width == 32, "two products of 16 of the rank with B");
  /// Threads that gather A and B, and the warp behind them that copies.
  static constexpr u32 gatherers = 64, copying_warp = 4 * C::groups + gatherers / warp_size;
  /// Columns of y that meet B at a time: two CTAs an SM leave no registers for more.
  static constexpr u32 width = C::groups == 1 ? 32 : 64;

  /// Whether the tile from a column on has columns of a segment.
  GPU_DEVICE bool meets(const LoraSegment& segment, u32 first_column) const {
    return segment.begin < gpu::min(first_column + C::columns, p.columns) && segment.end > first_column;
  }

  // --- The warps that gather.

  /// A of every step, loaded `ahead` steps early into registers; then B, if the tile has columns of a segment.
  GPU_DEVICE void gather(const ForwardTask& task, u32 begin, u32 steps) const {
    constexpr u32 count = t_width * C::row_chunks / gatherers, rows_apart = gatherers / C::row_chunks, ahead = 4;
    const u32 thread = threadIdx.x - C::consumer_threads, row = thread / C::row_chunks, chunk = thread % C::row_chunks;
    const u32 first_column = task.column_tile * C::columns;
    const E* a[count];
#pragma unroll
    for (u32 i = 0; i < count; i++) {
      const u32 t_column = row + i * rows_apart;
      a[i] = t_column < p.t_stride ? a_row<E>(p, factors, t_column) : nullptr;
    }
    Chunk coming[ahead][count];
    const auto load_a = [&](Chunk(&into)[count], u32 step) {
      const u32 k = begin + step * C::depth + 8 * chunk;
#pragma unroll
      for (u32 i = 0; i < count; i++) {
        into[i] = tile::zero_chunk;
        if (a[i] && step < steps && k < p.depth) into[i] = load_constant(reinterpret_cast<const Chunk*>(a[i] + k));
      }
    };
#pragma unroll
    for (u32 i = 0; i < ahead; i++) load_a(coming[i], i);
    prefetch_b(first_column, thread);
    Position at;
#pragma unroll 1
    for (u32 step = 0; step < steps; step += ahead) {
#pragma unroll
      for (u32 s = 0; s < ahead; s++) {
        if (step + s >= steps) break;
        pipe.await_empty(at);
#pragma unroll
        for (u32 i = 0; i < count; i++) {
          store_shared(pipe.fused_a(at.stage()) + tile::swizzled<C::row_chunks>(row + i * rows_apart, chunk), coming[s][i]);
        }
        load_a(coming[s], step + s + ahead);
        commit_stores(at.stage(), thread, 1);
        at.advance();
      }
    }
    if (low_rank_steps<C>(p, first_column).count() == 0) return;
    pipe.await_empty(at);
    store_b(first_column, at.stage(), thread);
    commit_stores(at.stage(), thread, C::full_arrivals);
  }

  /// B's rows are needed last and come to L2 meanwhile.
  GPU_DEVICE void prefetch_b(u32 first_column, u32 thread) const {
    for (u32 s = 0; s < p.segment_count; s++) {
      const LoraSegment& segment = p.segments[s];
      const LoraFactors& own = factors[s];
      for (u32 i = thread; i < C::columns; i += gatherers) {
        const u32 column = first_column + i;
        if (column < segment.begin || column >= segment.end || own.rank == 0) continue;
        prefetch_l2(static_cast<const E*>(own.b) + u64(column - segment.begin) * own.b_stride);
      }
    }
  }

  /// B for all columns of T, zeros in columns of y outside its segment.
  GPU_DEVICE void store_b(u32 first_column, u32 stage, u32 thread) const {
#pragma unroll 1
    for (u32 i = thread; i < C::columns * t_chunks; i += gatherers) {
      const u32 row = i / t_chunks, chunk = i % t_chunks, column = first_column + row;
      const u32 s = segment_of(p, 8 * chunk);
      const LoraSegment& segment = p.segments[s];
      const LoraFactors& own = factors[s];
      Chunk b = tile::zero_chunk;
      if (8 * chunk < p.t_stride && column >= segment.begin && column < segment.end) {
        const E* source = static_cast<const E*>(own.b) + u64(column - segment.begin) * own.b_stride;
        const u32 first = 8 * chunk - segment.t_begin;
        b = tile::rows_are_aligned<E>(own.b, own.b_stride) && own.rank % 8 == 0
                ? tile::load_weight<E, true>(source, first, own.rank)
                : tile::load_weight<E, false>(source, first, own.rank);
      }
      store_shared(pipe.right(stage) + tile::swizzled<C::row_chunks>(row, chunk), b);
    }
  }

  /// Fences what the gathering warps stored for wgmma's proxy; then one thread arrives, `arrivals` times.
  GPU_DEVICE void commit_stores(u32 stage, u32 thread, u32 arrivals) const {
    fence_proxy_async_shared();
    sync_named(NamedBarrier::producers, gatherers);
    if (thread == 0) pipe.arrive_full(stage, arrivals);
  }

  // --- Consumers.

  /// This CTA's part of a tile: the main loop over x, W0 and A, then the products of T with B.
  GPU_DEVICE void consume(const ForwardTask& task, u32 steps) const {
    float d[C::columns / 2], t[t_width / 2];
    Position at;
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
      pipe.await_full(at);
      wgmma_fence();
#pragma unroll
      for (u32 k = 0; k < C::depth / 16; k++) {
        const u64 left = pipe.left_descriptor(at.stage(), k), weight = pipe.weight_descriptor(at.stage(), k);
        wgmma_m64k16<E, C::columns, Major::K, C::weight>(d, left, weight, step != 0 || k != 0);
        wgmma_m64k16<E, t_width, Major::K, Major::K>(t, left, a_descriptor(at.stage(), k), step != 0 || k != 0);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (step != 0) pipe.release(at.previous_stage());
      at.advance();
    }
    wgmma_wait<0>();
    wgmma_fence_operands(d);
    wgmma_fence_operands(t);
    pipe.release(at.previous_stage());

    const u32 first_column = task.column_tile * C::columns;
    if (low_rank_steps<C>(p, first_column).count() != 0) {
      pipe.await_full(at);
      add_t_b<0>(d, t, first_column, at.stage());
      add_t_b<1>(d, t, first_column, at.stage());
    }
    store_partial(pipe, d);
  }

  GPU_DEVICE u64 a_descriptor(u32 stage, u32 k) const {
    return wgmma_descriptor(shared_address(pipe.fused_a(stage)), 0, 8 * C::row_bytes) + 2 * k;
  }

  /// d += s·T·Bᵀ for the INDEX-th 16 columns of T, which are one segment's.
  template <u32 INDEX>
  GPU_DEVICE void add_t_b(float (&d)[C::columns / 2], const float (&t)[t_width / 2], u32 first_column, u32 stage) const {
    if (16 * INDEX >= p.t_stride) return;
    const u32 s = segment_of(p, 16 * INDEX);
    const LoraSegment& segment = p.segments[s];
    if (!meets(segment, first_column)) return;
    const u32 begin = gpu::max(segment.begin, first_column) - first_column, end = segment.end - first_column;
    const float scale = factors[s].scale;
    // Sums of 64 rows and 16 columns lie in a warp's registers as the left operand does.
    u32 left[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) left[i] = pack<E>(scale * t[8 * INDEX + 2 * i], scale * t[8 * INDEX + 2 * i + 1]);
#pragma unroll
    for (u32 first = 0; first < C::columns; first += width) {
      if (first >= end || first + width <= begin) continue;
      float sum[width / 2];
#pragma unroll
      for (u32 i = 0; i < width / 2; i++) sum[i] = d[first / 2 + i];
      wgmma_fence_operands(sum);
      wgmma_fence_operands(left);
      wgmma_fence();
      wgmma_m64k16_registers<E, width, Major::K>(sum, left, pipe.right_descriptor(stage, first, INDEX), 1);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_fence_operands(sum);
#pragma unroll
      for (u32 i = 0; i < width / 2; i++) {
        const u32 column = first + i / 4 * 8 + lane_id() % 4 * 2 + i % 2;
        if (column >= begin && column < end) d[first / 2 + i] = sum[i];
      }
    }
  }

  struct Memory {
    Chunk* ring;
    u64* barriers;
    LoraFactors* factors;

    GPU_DEVICE Memory() {
      SharedMemory shared;
      ring = shared.take<Chunk, 1024>(C::stages * C::stage_chunks);
      barriers = shared.take<u64>(2 * C::stages);
      factors = SegmentFactors::take_room(shared);
    }
  };

  GPU_DEVICE ForwardWgmmaFused(const LoraForwardTma& params, Memory memory)
      : p(params.forward), pipe(params, memory.ring, memory.barriers), factors(memory.factors) {}

  const LoraForward& p;
  const Pipeline<C> pipe;
  const SegmentFactors factors;
};

}  // namespace lora

/// A kernel of this family. WEIGHT and FACTORS are the contiguous dimensions of W0 and of A and B in the product.
#define FORWARD_WGMMA_FUSED(NAME, E, WEIGHT, FACTORS, TILE)                                                                     \
  GPU_KERNEL(NAME, LoraForwardTma, lora::tiles::TILE::threads, lora::tiles::TILE::ctas) {                         \
    using Config = lora::WgmmaConfig<gpu::E, gpu::Major::WEIGHT, gpu::Major::FACTORS, lora::tiles::TILE>;          \
    lora::ForwardWgmmaFused<Config>(params).run();                                                                             \
  }
