// lora_forward on mma.sync or CUDA cores, with operands that come by cp.async. dx and bottleneck adapters are the same
// kernel with other operands (lora/dx.h, adapter/adapter.h).
//
// Life of a CTA. It takes one ticket, which stands for a T tile, a y tile, or one split of either.
//
//   T tile   x and A through the ring, sums of all splits, s·T to the workspace, flag                        compute_t
//   y tile   x and W0 through the ring, sums of all splits; T and B, as further K steps of the same ring;
//            bias, activation, residual, store                                                               compute_y
//
// Who owns what. A CTA owns rows × columns of y; each warp holds the sums of its part in registers. Both operands pass
// through a ring of stages in shared memory (tile/ring.h). A T tile is rows × 64, 16 rows per warp; products with columns
// beyond the last rank are skipped. Where there are too few tiles for the device, several CTAs split K: each stores its sums
// in the workspace, and the last to arrive adds all of them in the order of the splits; of a y tile it then multiplies T and
// B. A warp whose rows are all beyond the last token stores no sums.
//
// Shared memory: stages·(rows + columns)·depth values, 128 bytes for the ticket, and the factors. The epilogue reuses the
// ring.
#pragma once

#include <gpu/grid.h>
#include <gpu/warp.h>
#include <lora/dx.h>  // what dx has in the place of A and B
#include <lora/forward.h>
#include <lora/tiles.h>
#include <tile/epilogue.h>
#include <tile/ring.h>
#include <tile/staged.h>

namespace lora {

/// How a LoRA layer stores T and y.
struct LoraEpilogue {
  /// Stores a chunk of T.
  template <class E, Major FACTORS>
  GPU_DEVICE void store_t(const LoraForward& p, const SegmentFactors& factors, float (&value)[chunk_elements<E>], u32 row,
                          u32 column) const {
    store_t_chunk<E, FACTORS>(p, factors, value, row, column);
  }

  /// What stores chunks of y.
  template <class E>
  GPU_DEVICE tile::Epilogue<E> of_y(const LoraForward& p) const {
    return tile::Epilogue<E>(p);
  }
};

/// What tells one of these kernels from another. PRODUCT multiplies: tile::TensorCores, tile::Tf32TensorCores or
/// tile::CudaCores. WEIGHT is the contiguous dimension of W0, FACTORS that of A and B: Major::K in the forward kernels,
/// Major::MN in dx. TILE is one of lora/tiles.h.
template <class PRODUCT, class E_, Major WEIGHT, Major FACTORS, class TILE, class EPILOGUE = LoraEpilogue>
struct TileConfig {
  using Product = PRODUCT;
  using E = E_;
  using Epilogue = EPILOGUE;
  static constexpr Major weight = WEIGHT, factors = FACTORS;
  static constexpr u32 rows = TILE::rows, columns = TILE::columns, depth = TILE::depth, stages = TILE::stages;
  static constexpr u32 warp_rows = TILE::warp_rows, warp_columns = TILE::warp_columns, threads = TILE::threads;
  static constexpr bool aligned = TILE::aligned;

  static constexpr u32 warps_across = columns / warp_columns, warps = rows / warp_rows * warps_across;
  static constexpr u32 elements = chunk_elements<E>, row_chunks = depth / elements;
  static constexpr u32 left_chunks = rows * row_chunks, stage_chunks = left_chunks + columns * row_chunks;
  static constexpr u32 t_columns = LORA_FORWARD_T_COLUMNS;
  static_assert(warps * warp_size == threads, "every warp has a part of the tile");
  static_assert(warps * 16 == rows && t_columns <= columns, "a T tile is 16 rows per warp, in the same ring");
};

/// C is a TileConfig.
template <class C>
class ForwardTile {
  using E = typename C::E;

 public:
  GPU_DEVICE explicit ForwardTile(const LoraForward& params, const typename C::Epilogue& epilogue = {})
      : p(params),
        epilogue(epilogue),
        shared(),
        word(shared.take<u64>(1)),
        ring(shared.take<Chunk, 128>(C::stages * C::stage_chunks)),
        factors(SegmentFactors::take_room(shared)) {}

  GPU_DEVICE void run() {
    grid_dependency_launch();
    grid_dependency_wait();
    task = ForwardTask::draw(p, factors, word);
    first_row = task.row_tile * C::rows;
    if (task.is_t) {
      compute_t();
    } else {
      compute_y();
    }
  }

 private:
  using Rows = tile::DepthRows<E, C::rows, C::depth, C::threads, C::aligned>;
  using ARows = tile::DepthRows<E, C::t_columns, C::depth, C::threads, C::aligned>;
  using Sums = typename C::Product::template Sums<E, C::warp_rows, C::warp_columns, C::weight>;

  GPU_DEVICE Chunk* left(u32 stage) const { return ring + stage * C::stage_chunks; }
  GPU_DEVICE Chunk* right(u32 stage) const { return left(stage) + C::left_chunks; }

  /// Rows beyond the last token repeat the last row; their results are not stored.
  GPU_DEVICE Rows input() const {
    return Rows([&](u32 i) { return at(p.x, gpu::min(first_row + i, p.tokens - 1), p.x_stride); });
  }

  GPU_DEVICE ARows a_rows(u32 first) const {
    return ARows([&](u32 i) { return a_row<E>(p, factors, first + i); });
  }

  static GPU_DEVICE const E* at(const void* base, u32 row, u32 stride) {
    return static_cast<const E*>(base) + u64(row) * stride;
  }

  /// A T tile, or a split of one.
  GPU_DEVICE void compute_t() {
    const u32 first = task.column_tile * C::t_columns, columns = gpu::min(C::t_columns, p.t_stride - first);
    const Rows x = input();
    const u32 begin = task.split * p.t_split_depth, end = gpu::min(begin + p.t_split_depth, p.depth);
    const u32 steps = (end - begin + C::depth - 1) / C::depth;
    using TSums = typename C::Product::template Sums<E, 16, C::t_columns, C::factors>;
    TSums sums;
    sums.clear();
    if constexpr (C::factors == Major::K) {
      const ARows a = a_rows(first);
      tile::through_ring<C::stages>(
          steps,
          [&](u32 step, u32 stage) {
            x.stage(left(stage), begin + step * C::depth, end, p.x);
            a.stage(right(stage), begin + step * C::depth, end, p.x);
          },
          [&](u32 step, u32 stage) {
            const u32 k = begin + step * C::depth;
            if (drop_out_stage<E, C::rows, C::depth>(p, left(stage), first_row, k, threadIdx.x, C::threads)) sync_block();
            sums.template multiply_within<C::depth, C::t_columns, C::factors>(left(stage), 16 * warp_id(), right(stage), 0,
                                                                              C::depth / 16, 0, columns);
          });
    } else {
      const ColumnsOfB<E, C::depth, C::threads> b(p, task.column_tile);
      tile::through_ring<C::stages>(
          steps,
          [&](u32 step, u32 stage) {
            const u32 k = begin + step * C::depth;
            if (!has_rows<C::depth>(p, task.column_tile, k)) return;
            x.stage(left(stage), k, end, p.x);
            b.stage(right(stage), k);
          },
          [&](u32 step, u32 stage) {
            if (!has_rows<C::depth>(p, task.column_tile, begin + step * C::depth)) return;
            sums.template multiply_within<C::depth, C::t_columns, C::factors>(left(stage), 16 * warp_id(), right(stage), 0,
                                                                              C::depth / 16, 0, columns);
          });
    }
    if (p.t_splits != 1) {
      const auto split_tile = SplitTile::of_t(p, task, TSums::sums / 4 * C::threads);
      if (!add_splits(sums, split_tile, first_row + 16 * warp_id(), columns)) return;
    }

    for_each_chunk<16, C::t_columns>(sums, [&](float (&value)[C::elements], u32 row, u32 column) {
      row += first_row + 16 * warp_id();
      if (row < p.tokens && column < columns)
        epilogue.template store_t<E, C::factors>(p, factors, value, row, first + column);
    });
    publish_t(p, task);
  }

  /// A y tile, or a split of one.
  GPU_DEVICE void compute_y() {
    const u32 first_column = task.column_tile * C::columns;
    const u32 columns = gpu::min(C::columns, p.columns - first_column);
    const auto low_rank = LowRankSteps<C::depth>::template of<C::factors>(p, first_column, first_column + columns);
    const u32 low_rank_steps = low_rank.count();
    const u32 begin = task.split * p.split_depth, end = gpu::min(begin + p.split_depth, p.depth);
    const u32 warp_row = warp_id() / C::warps_across * C::warp_rows,
              warp_column = warp_id() % C::warps_across * C::warp_columns;
    const Rows x = input();
    const auto weight = weight_columns(first_column);

    Sums sums;
    sums.clear();
    u32 base_steps = (end - begin + C::depth - 1) / C::depth, steps = base_steps + (p.splits == 1 ? low_rank_steps : 0);
    // One pass; with split-K two: the first over this CTA's split of K, the second over the adapters' steps.
#pragma unroll 1
    while (true) {
      tile::through_ring<C::stages>(
          steps,
          [&](u32 step, u32 stage) {
            if (step < base_steps) {
              x.stage(left(stage), begin + step * C::depth, end, p.x);
              weight.stage(right(stage), begin + step * C::depth, end, p.weight);
            } else {
              stage_t(low_rank.at(step - base_steps), stage);
              stage_b(low_rank.at(step - base_steps), stage, first_column);
            }
          },
          [&](u32 step, u32 stage) {
            if (step < base_steps) {
              sums.template multiply<C::depth, C::columns, C::weight>(left(stage), warp_row, right(stage), warp_column);
            } else {
              add_low_rank(sums, low_rank.at(step - base_steps), stage, warp_row, warp_column, first_column);
            }
          });
      if (p.splits == 1 || base_steps == 0) break;
      const auto split_tile = SplitTile::of_y(p, task, Sums::sums / 4 * C::threads);
      if (!add_splits(sums, split_tile, first_row + warp_row, C::columns)) return;
      base_steps = 0;  // now the second pass
      steps = low_rank_steps;
      if (steps == 0) break;
    }
    store_y(sums, first_row + warp_row, first_column + warp_column);
  }

  GPU_DEVICE auto weight_columns(u32 first_column) const {
    if constexpr (C::weight == Major::K) {
      return tile::DepthRows<E, C::columns, C::depth, C::threads, C::aligned>(
          [&](u32 i) { return at(p.weight, gpu::min(first_column + i, p.columns - 1), p.weight_stride); });
    } else {
      return tile::DepthColumns<E, C::columns, C::depth, C::threads, C::aligned>(static_cast<const E*>(p.weight),
                                                                                 p.weight_stride, first_column, p.columns);
    }
  }

  /// Waits for T, then issues the copies of C::depth of its columns.
  GPU_DEVICE void stage_t(const LowRankStep& step, u32 stage) const {
    constexpr u32 chunks = C::row_chunks;
    const LoraSegment& segment = p.segments[step.segment];
    const u32 t_begin = segment.t_begin + step.k, t_end = segment.t_begin + padded_rank(segment);
    await_t(p, task.row_tile, t_begin, gpu::min(t_begin + C::depth, t_end), task.epoch);
#pragma unroll 1
    for (u32 i = threadIdx.x; i < C::rows * chunks; i += C::threads) {
      const u32 row = i / chunks, chunk = i % chunks;
      const E* t = at(p.t, gpu::min(first_row + row, p.tokens - 1), p.t_stride);
      tile::stage_chunk<E, true>(left(stage) + tile::swizzled<chunks>(row, chunk), t, t_begin + C::elements * chunk, t_end,
                                 p.t);
    }
  }

  /// Issues the copies of C::depth columns of B, in dx of C::depth rows of A. Rows of both may start anywhere.
  GPU_DEVICE void stage_b(const LowRankStep& step, u32 stage, u32 first_column) const {
    const LoraSegment& segment = p.segments[step.segment];
    if constexpr (C::factors == Major::MN) {
      constexpr u32 chunks = C::columns / C::elements;
      const bool a_aligned = a_is_aligned<E>(p, segment.factors);
#pragma unroll 1
      for (u32 i = threadIdx.x; i < rank_values<C::depth>(segment, step.k) * chunks; i += C::threads) {
        const u32 row = i / chunks, chunk = i % chunks, column = first_column + C::elements * chunk;
        Chunk* place = right(stage) + tile::swizzled<chunks>(row, chunk);
        if (a_aligned) {
          tile::stage_chunk<E, true>(place, row_of_a<E>(segment.factors, step.k + row), column, p.columns,
                                     segment.factors.a);
        } else {
          tile::stage_chunk<E, false>(place, row_of_a<E>(segment.factors, step.k + row), column, p.columns,
                                      segment.factors.a);
        }
      }
    } else {
      constexpr u32 chunks = C::row_chunks;
      const LoraFactors own = factors[step.segment];
      const bool b_aligned = tile::rows_are_aligned<E>(own.b, own.b_stride) && own.rank % C::elements == 0;
#pragma unroll 1
      for (u32 i = threadIdx.x; i < C::columns * chunks; i += C::threads) {
        const u32 row = i / chunks, chunk = i % chunks, column = first_column + row;
        const bool present = column >= segment.begin && column < segment.end;
        const E* b = present ? at(own.b, column - segment.begin, own.b_stride) : nullptr;
        Chunk* place = right(stage) + tile::swizzled<chunks>(row, chunk);
        if (b_aligned) {
          tile::stage_chunk<E, true>(place, b, step.k + C::elements * chunk, own.rank, own.b);
        } else {
          tile::stage_chunk<E, false>(place, b, step.k + C::elements * chunk, own.rank, own.b);
        }
      }
    }
  }

  /// sums += s·T·Bᵀ for a segment's columns; in dx sums += Q·A for all columns.
  GPU_DEVICE void add_low_rank(Sums& sums, const LowRankStep& step, u32 stage, u32 warp_row, u32 warp_column,
                               u32 first_column) const {
    const LoraSegment& segment = p.segments[step.segment];
    const u32 steps = (segment.factors.rank - step.k + 15) / 16;
    if constexpr (C::factors == Major::K) {
      const u32 from = gpu::max(segment.begin, first_column) - first_column;
      sums.template multiply_within<C::depth, C::columns, C::factors>(left(stage), warp_row, right(stage), warp_column,
                                                                      steps, from, segment.end - first_column);
    } else if (p.dropout.threshold == 0) {
      sums.template multiply_within<C::depth, C::columns, C::factors>(left(stage), warp_row, right(stage), warp_column,
                                                                      steps, 0, C::columns);
    } else {
      sums.template multiply_with_mask<C::depth, C::columns, C::factors>(left(stage), warp_row, right(stage), warp_column, steps,
                                                                    p.dropout, first_row, first_column);
    }
  }

  /// Stores this CTA's sums in the workspace; the last CTA of the tile adds the sums of all splits. Returns whether this CTA
  /// is the last. Sums of rows and columns that are not stored are left out.
  template <class S>
  GPU_DEVICE bool add_splits(S& sums, const SplitTile& split_tile, u32 warp_row, u32 columns) const {
    constexpr u32 quads = S::sums / 4;
    const auto quad_of = [&](u32 i) -> float* { return sums.quad(i); };
    const auto wanted = [&](u32 i) { return warp_row < p.tokens && S::first_column_of_quad(i) < columns; };
    split_tile.store_sums<quads>(C::threads, quad_of, wanted);
    sync_block();
    if (!sync_block_or(threadIdx.x == 0 && split_tile.arrive())) return false;
    split_tile.add_sums<quads>(C::threads, quad_of, wanted);
    return true;
  }

  /// Stores a warp's part of the tile.
  GPU_DEVICE void store_y(const Sums& sums, u32 first_row, u32 first_column) const {
    const auto y = epilogue.template of_y<E>(p);
    for_each_chunk<C::warp_rows, C::warp_columns>(sums, [&](float (&value)[C::elements], u32 row, u32 column) {
      y.store_chunk(value, first_row + row, first_column + column);
    });
  }

  /// Calls send(chunk, row, column) for a warp's sums in whole chunks. They pass through the warp's part of the ring, 16
  /// rows at a time.
  template <u32 HEIGHT, u32 WIDTH, class S, class F>
  GPU_DEVICE void for_each_chunk(const S& sums, F&& send) const {
    constexpr u32 stride = WIDTH + 8, chunks = WIDTH / C::elements;
    static_assert(C::warps * 16 * stride * sizeof(float) <= C::stages * C::stage_chunks * sizeof(Chunk), "fits the ring");
    float* slab = reinterpret_cast<float*>(ring) + warp_id() * 16 * stride;
#pragma unroll
    for (u32 m = 0; m < HEIGHT / 16; m++) {
      sums.each_of_rows(m, [&](u32 row, u32 column, float value) { slab[row * stride + column] = value; });
      sync_warp();
#pragma unroll
      for (u32 i = lane_id(); i < 16 * chunks; i += warp_size) {
        const Chunk* place = reinterpret_cast<const Chunk*>(slab + i / chunks * stride + i % chunks * C::elements);
        float value[C::elements];
#pragma unroll
        for (u32 e = 0; e < C::elements; e += 4) {
          const Chunk four = load_shared(place + e / 4);
#pragma unroll
          for (u32 f = 0; f < 4; f++) value[e + f] = from_bits(four.word[f]);
        }
        send(value, 16 * m + i / chunks, i % chunks * C::elements);
      }
      sync_warp();
    }
  }

  const LoraForward& p;
  const typename C::Epilogue epilogue;
  SharedMemory shared;
  u64* word;
  Chunk* ring;
  SegmentFactors factors;
  ForwardTask task;
  u32 first_row;
};

}  // namespace lora

/// A kernel of this family. WEIGHT and FACTORS are the contiguous dimensions of W0 and of A and B in the product.
#define FORWARD_TILE(NAME, PRODUCT, E, WEIGHT, FACTORS, TILE)                                                           \
  GPU_KERNEL(NAME, LoraForward, lora::tiles::TILE::threads, lora::tiles::TILE::ctas) {                                  \
    using Config = lora::TileConfig<tile::PRODUCT, gpu::E, gpu::Major::WEIGHT, gpu::Major::FACTORS, lora::tiles::TILE>; \
    lora::ForwardTile<Config>(params).run();                                                                            \
  }
