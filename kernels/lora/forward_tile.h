// lora_forward on mma.sync or CUDA cores, with operands that come by cp.async.
//
// Who owns what. A CTA owns ROWS × COLUMNS of y; each warp holds the sums of its part in registers. Both operands pass
// through a ring in shared memory, DEPTH values of K per stage. T and B follow x and W0 through the same ring, as further K
// steps. A T tile is ROWS × 64, 16 rows per warp; products with columns beyond the last rank are skipped. Where there are
// too few tiles for the device, several CTAs split K: each stores its sums in the workspace, and the last to arrive adds all
// of them in the order of the splits, then multiplies T and B. A warp whose rows are all beyond the last token stores no
// sums.
//
// FACTORS is the contiguous dimension of A and B: Major::K in the forward kernels, Major::MN in dx (lora/dx.h). EPILOGUE stores
// T and y; a bottleneck adapter does more there than a LoRA layer (adapter/adapter.h).
//
// Shared memory: STAGES·(ROWS + COLUMNS)·DEPTH values, 128 bytes, and the factors. The epilogue reuses the ring.
#pragma once

#include <gpu/grid.h>
#include <gpu/warp.h>
#include <lora/dx.h>
#include <lora/forward.h>
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

  /// The epilogue that stores chunks of y.
  template <class E>
  GPU_DEVICE tile::Epilogue<E> epilogue(const LoraForward& p) const {
    return tile::Epilogue<E>(p);
  }
};

/// A warp owns WARP_ROWS × WARP_COLUMNS of y. PRODUCT is what multiplies: tile::TensorCores, tile::Tf32TensorCores or
/// tile::CudaCores.
template <class PRODUCT, class E, Major WEIGHT, Major FACTORS, u32 ROWS, u32 COLUMNS, u32 WARP_ROWS, u32 WARP_COLUMNS,
          u32 DEPTH, u32 STAGES, bool ALIGNED, class EPILOGUE = LoraEpilogue>
class ForwardTile {
 public:
  static constexpr u32 warps_across = COLUMNS / WARP_COLUMNS, warps = ROWS / WARP_ROWS * warps_across;
  static constexpr u32 threads = warps * warp_size;
  static constexpr u32 elements = chunk_elements<E>, row_chunks = DEPTH / elements;
  static constexpr u32 stage_chunks = (ROWS + COLUMNS) * row_chunks;
  static constexpr u32 t_columns = LORA_FORWARD_T_COLUMNS;
  static_assert(warps * 16 == ROWS && t_columns <= COLUMNS, "a tile of T is 16 rows a warp, in the same ring");

  GPU_DEVICE explicit ForwardTile(const LoraForward& params, const EPILOGUE& ends = {})
      : p(params),
        ends(ends),
        shared(),
        word(shared.take<u64>(1)),
        ring(shared.take<Chunk, 128>(STAGES * stage_chunks)),
        factors(SegmentFactors::take_room(shared)) {}

  GPU_DEVICE void run() {
    grid_dependency_launch();
    grid_dependency_wait();
    task = ForwardTask::draw(p, factors, word);
    first_row = task.row_tile * ROWS;
    if (task.is_t) {
      shrink();
    } else {
      multiply();
    }
  }

 private:
  using Rows = tile::DepthRows<E, ROWS, DEPTH, threads, ALIGNED>;
  using ARows = tile::DepthRows<E, t_columns, DEPTH, threads, ALIGNED>;
  using Sums = typename PRODUCT::template Sums<E, WARP_ROWS, WARP_COLUMNS, WEIGHT>;

  GPU_DEVICE Chunk* left(u32 stage) const { return ring + stage * stage_chunks; }
  GPU_DEVICE Chunk* right(u32 stage) const { return left(stage) + ROWS * row_chunks; }

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
  GPU_DEVICE void shrink() {
    const u32 first = task.column_tile * t_columns, columns = gpu::min(t_columns, p.t_stride - first);
    const Rows x = input();
    const u32 begin = task.split * p.t_split_depth, end = gpu::min(begin + p.t_split_depth, p.depth);
    const u32 steps = (end - begin + DEPTH - 1) / DEPTH;
    using TSums = typename PRODUCT::template Sums<E, 16, t_columns, FACTORS>;
    TSums sums;
    sums.clear();
    if constexpr (FACTORS == Major::K) {
      const ARows a = a_rows(first);
      tile::through_ring<STAGES>(
          steps,
          [&](u32 step, u32 stage) {
            x.stage(left(stage), begin + step * DEPTH, end, p.x);
            a.stage(right(stage), begin + step * DEPTH, end, p.x);
          },
          [&](u32 step, u32 stage) {
            const u32 k = begin + step * DEPTH;
            if (drop_out_stage<E, ROWS, DEPTH>(p, left(stage), first_row, k, threadIdx.x, threads)) sync_block();
            sums.template multiply_within<DEPTH, t_columns, FACTORS>(left(stage), 16 * warp_id(), right(stage), 0,
                                                                     DEPTH / 16, 0, columns);
          });
    } else {
      const ColumnsOfB<E, DEPTH, threads> b(p, task.column_tile);
      tile::through_ring<STAGES>(
          steps,
          [&](u32 step, u32 stage) {
            const u32 k = begin + step * DEPTH;
            if (!has_rows<DEPTH>(p, task.column_tile, k)) return;
            x.stage(left(stage), k, end, p.x);
            b.stage(right(stage), k);
          },
          [&](u32 step, u32 stage) {
            if (!has_rows<DEPTH>(p, task.column_tile, begin + step * DEPTH)) return;
            sums.template multiply_within<DEPTH, t_columns, FACTORS>(left(stage), 16 * warp_id(), right(stage), 0,
                                                                     DEPTH / 16, 0, columns);
          });
    }
    if (p.t_splits != 1) {
      const auto shared_tile = SharedTile::of_t(p, task, TSums::sums / 4 * threads);
      if (!add_splits(sums, shared_tile, first_row + 16 * warp_id(), columns)) return;
    }

    send_out<16, t_columns>(sums, [&](float (&value)[elements], u32 row, u32 column) {
      row += first_row + 16 * warp_id();
      if (row < p.tokens && column < columns) ends.template store_t<E, FACTORS>(p, factors, value, row, first + column);
    });
    publish_t(p, task);
  }

  /// A y tile, or a split of one.
  GPU_DEVICE void multiply() {
    const u32 first_column = task.column_tile * COLUMNS;
    const u32 columns = gpu::min(COLUMNS, p.columns - first_column);
    const auto low_rank = LowRankSteps<DEPTH>::template of<FACTORS>(p, first_column, first_column + columns);
    const u32 low_rank_steps = low_rank.count();
    const u32 begin = task.split * p.split_depth, end = gpu::min(begin + p.split_depth, p.depth);
    const u32 warp_row = warp_id() / warps_across * WARP_ROWS, warp_column = warp_id() % warps_across * WARP_COLUMNS;
    const Rows x = input();
    const auto weight = weight_columns(first_column);

    Sums sums;
    sums.clear();
    u32 base_steps = (end - begin + DEPTH - 1) / DEPTH, steps = base_steps + (p.splits == 1 ? low_rank_steps : 0);
    // One pass; with split-K two: the first over this CTA's split of K, the second over the adapters' steps.
#pragma unroll 1
    while (true) {
      tile::through_ring<STAGES>(
          steps,
          [&](u32 step, u32 stage) {
            if (step < base_steps) {
              x.stage(left(stage), begin + step * DEPTH, end, p.x);
              weight.stage(right(stage), begin + step * DEPTH, end, p.weight);
            } else {
              stage_t(low_rank.at(step - base_steps), stage);
              stage_b(low_rank.at(step - base_steps), stage, first_column);
            }
          },
          [&](u32 step, u32 stage) {
            if (step < base_steps) {
              sums.template multiply<DEPTH, COLUMNS, WEIGHT>(left(stage), warp_row, right(stage), warp_column);
            } else {
              add_low_rank(sums, low_rank.at(step - base_steps), stage, warp_row, warp_column, first_column);
            }
          });
      if (p.splits == 1 || base_steps == 0) break;
      const auto shared_tile = SharedTile::of_y(p, task, Sums::sums / 4 * threads);
      if (!add_splits(sums, shared_tile, first_row + warp_row, COLUMNS)) return;
      base_steps = 0;
      steps = low_rank_steps;
      if (steps == 0) break;
    }
    leave(sums, first_row + warp_row, first_column + warp_column);
  }

  GPU_DEVICE auto weight_columns(u32 first_column) const {
    if constexpr (WEIGHT == Major::K) {
      return tile::DepthRows<E, COLUMNS, DEPTH, threads, ALIGNED>(
          [&](u32 i) { return at(p.weight, gpu::min(first_column + i, p.columns - 1), p.weight_stride); });
    } else {
      return tile::DepthColumns<E, COLUMNS, DEPTH, threads, ALIGNED>(static_cast<const E*>(p.weight), p.weight_stride,
                                                                     first_column, p.columns);
    }
  }

  /// Waits for T, then issues the copies of DEPTH of its columns.
  GPU_DEVICE void stage_t(const LowRankStep& step, u32 stage) const {
    constexpr u32 chunks = row_chunks;
    const LoraSegment& segment = p.segments[step.segment];
    const u32 t_begin = segment.t_begin + step.k, t_end = segment.t_begin + padded_rank(segment);
    await_t(p, task.row_tile, t_begin, gpu::min(t_begin + DEPTH, t_end), task.epoch);
#pragma unroll 1
    for (u32 i = threadIdx.x; i < ROWS * chunks; i += threads) {
      const u32 row = i / chunks, chunk = i % chunks;
      const E* t = at(p.t, gpu::min(first_row + row, p.tokens - 1), p.t_stride);
      tile::stage_chunk<E, true>(left(stage) + tile::swizzled<chunks>(row, chunk), t, t_begin + elements * chunk, t_end, p.t);
    }
  }

  /// Issues the copies of DEPTH columns of B, in dx of DEPTH rows of A. Rows of both may start anywhere.
  GPU_DEVICE void stage_b(const LowRankStep& step, u32 stage, u32 first_column) const {
    const LoraSegment& segment = p.segments[step.segment];
    if constexpr (FACTORS == Major::MN) {
      constexpr u32 chunks = COLUMNS / elements;
      const bool a_aligned = a_is_aligned<E>(p, segment.factors);
#pragma unroll 1
      for (u32 i = threadIdx.x; i < rank_values<DEPTH>(segment, step.k) * chunks; i += threads) {
        const u32 row = i / chunks, chunk = i % chunks, column = first_column + elements * chunk;
        Chunk* place = right(stage) + tile::swizzled<chunks>(row, chunk);
        if (a_aligned) {
          tile::stage_chunk<E, true>(place, row_of_a<E>(segment.factors, step.k + row), column, p.columns, segment.factors.a);
        } else {
          tile::stage_chunk<E, false>(place, row_of_a<E>(segment.factors, step.k + row), column, p.columns, segment.factors.a);
        }
      }
    } else {
      constexpr u32 chunks = row_chunks;
      const LoraFactors own = factors[step.segment];
      const bool b_aligned = tile::rows_are_aligned<E>(own.b, own.b_stride) && own.rank % elements == 0;
#pragma unroll 1
      for (u32 i = threadIdx.x; i < COLUMNS * chunks; i += threads) {
        const u32 row = i / chunks, chunk = i % chunks, column = first_column + row;
        const bool present = column >= segment.begin && column < segment.end;
        const E* b = present ? at(own.b, column - segment.begin, own.b_stride) : nullptr;
        Chunk* place = right(stage) + tile::swizzled<chunks>(row, chunk);
        if (b_aligned) {
          tile::stage_chunk<E, true>(place, b, step.k + elements * chunk, own.rank, own.b);
        } else {
          tile::stage_chunk<E, false>(place, b, step.k + elements * chunk, own.rank, own.b);
        }
      }
    }
  }

  /// sums += s·T·Bᵀ for a segment's columns; in dx sums += Q·A for all columns.
  GPU_DEVICE void add_low_rank(Sums& sums, const LowRankStep& step, u32 stage, u32 warp_row, u32 warp_column,
                               u32 first_column) const {
    const LoraSegment& segment = p.segments[step.segment];
    const u32 steps = (segment.factors.rank - step.k + 15) / 16;
    if constexpr (FACTORS == Major::K) {
      const u32 from = gpu::max(segment.begin, first_column) - first_column;
      sums.template multiply_within<DEPTH, COLUMNS, FACTORS>(left(stage), warp_row, right(stage), warp_column, steps, from,
                                                             segment.end - first_column);
    } else if (p.dropout.threshold == 0) {
      sums.template multiply_within<DEPTH, COLUMNS, FACTORS>(left(stage), warp_row, right(stage), warp_column, steps, 0,
                                                             COLUMNS);
    } else {
      sums.template multiply_kept<DEPTH, COLUMNS, FACTORS>(left(stage), warp_row, right(stage), warp_column, steps,
                                                           p.dropout, first_row, first_column);
    }
  }

  /// Stores this CTA's sums in the workspace; the last CTA of the tile adds the sums of all splits. Returns whether this CTA
  /// is the last. Sums of rows and columns that are not stored are left out.
  template <class S>
  GPU_DEVICE bool add_splits(S& sums, const SharedTile& shared_tile, u32 warp_row, u32 columns) const {
    constexpr u32 quads = S::sums / 4;
    const auto quad_of = [&](u32 i) -> float* { return sums.quad(i); };
    const auto wanted = [&](u32 i) { return warp_row < p.tokens && S::first_column_of_quad(i) < columns; };
    shared_tile.leave<quads>(threads, quad_of, wanted);
    sync_block();
    if (!sync_block_or(threadIdx.x == 0 && shared_tile.arrive())) return false;
    shared_tile.add_up<quads>(threads, quad_of, wanted);
    return true;
  }

  /// Stores a warp's part of the tile.
  GPU_DEVICE void leave(const Sums& sums, u32 first_row, u32 first_column) const {
    const auto epilogue = ends.template epilogue<E>(p);
    send_out<WARP_ROWS, WARP_COLUMNS>(sums, [&](float (&value)[elements], u32 row, u32 column) {
      epilogue.store_chunk(value, first_row + row, first_column + column);
    });
  }

  /// Calls send(chunk, row, column) for a warp's sums in whole chunks. They pass through the warp's part of the ring, 16
  /// rows at a time.
  template <u32 HEIGHT, u32 WIDTH, class S, class F>
  GPU_DEVICE void send_out(const S& sums, F&& send) const {
    constexpr u32 stride = WIDTH + 8, chunks = WIDTH / elements;
    static_assert(warps * 16 * stride * sizeof(float) <= STAGES * stage_chunks * sizeof(Chunk), "fits the ring");
    float* slab = reinterpret_cast<float*>(ring) + warp_id() * 16 * stride;
#pragma unroll
    for (u32 m = 0; m < HEIGHT / 16; m++) {
      sums.each_of_rows(m, [&](u32 row, u32 column, float value) { slab[row * stride + column] = value; });
      sync_warp();
#pragma unroll
      for (u32 i = lane_id(); i < 16 * chunks; i += warp_size) {
        const Chunk* place = reinterpret_cast<const Chunk*>(slab + i / chunks * stride + i % chunks * elements);
        float value[elements];
#pragma unroll
        for (u32 e = 0; e < elements; e += 4) {
          const Chunk four = load_shared(place + e / 4);
#pragma unroll
          for (u32 f = 0; f < 4; f++) value[e + f] = from_bits(four.word[f]);
        }
        send(value, 16 * m + i / chunks, i % chunks * elements);
      }
      sync_warp();
    }
  }

  const LoraForward& p;
  const EPILOGUE ends;
  SharedMemory shared;
  u64* word;
  Chunk* ring;
  SegmentFactors factors;
  ForwardTask task;
  u32 first_row;
};

}  // namespace lora

/// A kernel with tiles of SIZE × SIZE, of which each warp owns WARP_ROWS × WARP_COLUMNS.
#define FORWARD_TILE(NAME, PRODUCT, E, MAJOR, SIZE, WARP_ROWS, WARP_COLUMNS, DEPTH, ALIGNED, MIN_CTAS)                  \
  GPU_KERNEL(NAME, LoraForward, SIZE * 2, MIN_CTAS) {                                                                  \
    lora::ForwardTile<tile::PRODUCT, gpu::E, gpu::Major::MAJOR, gpu::Major::K, SIZE, SIZE, WARP_ROWS,            \
                      WARP_COLUMNS, DEPTH, 3, ALIGNED>(params)                                                         \
        .run();                                                                                                        \
  }

/// The same for dx. MAJOR is the contiguous dimension of W0 in this product: MN for W0 [out, in].
#define DX_TILE(NAME, PRODUCT, E, MAJOR, SIZE, WARP_ROWS, WARP_COLUMNS, DEPTH, ALIGNED, MIN_CTAS)                       \
  GPU_KERNEL(NAME, LoraForward, SIZE * 2, MIN_CTAS) {                                                                  \
    lora::ForwardTile<tile::PRODUCT, gpu::E, gpu::Major::MAJOR, gpu::Major::MN, SIZE, SIZE, WARP_ROWS,          \
                      WARP_COLUMNS, DEPTH, 3, ALIGNED>(params)                                                         \
        .run();                                                                                                        \
  }
