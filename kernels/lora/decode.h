// One linear layer with its adapters for 1 to 16 tokens, in one launch:
//
//   y[m, n] = act(Σ_k x[m, k] W0[n, k] + bias[n] + Σ_segments s·Σ_j B[n, j] T[m, j]) + residual[m, n],   T = x A^T
//
// Life of a CTA.
//   prefetch the first rows of W0                              each kernel
//   wait for the launch ahead; take tickets for rows of T      DecodeTile::low_rank_input, lora/shrink.h
//   main loop: sums of the tile over its K                     each kernel
//   add parts and splits, bias; wait for T, add s·T·Bᵀ;
//   activation, residual, store                                DecodeTile::finish, lora/expand.h
//
// This file has what the four decode kernels share. They differ in how a CTA sums its tile of the base product: over rows of
// W0 [out, in] or over columns of W0 [in, out], on CUDA cores or with mma.sync. Each stores `parts` partial sums per output, one
// for each warp that shares a row of W0, in shared memory; `finish` adds them in order, adds the low-rank terms, and runs the
// epilogue.
//
// Grid: x = tiles of `tile_columns` output columns, y = splits of K, z = groups of as many tokens as a tile has.
// Bytes: W0 and B once per group of tokens, A once per group of a ticket's tokens, x once per CTA (decode_rows.cu: per group
// of `row_threads` threads) and once per ticket; the floor is W0 + A + B + x + y. Launches: 1. Nothing is allocated or
// reset.
// Determinism: every sum has a fixed order, which depends on K, the layout and the plan, and not on the adapters, the
// schedule or the other tokens. A column outside every segment is bit for bit the base product's.
#pragma once

#include <abi.h>
#include <gpu/grid.h>
#include <gpu/shared.h>
#include <lora/expand.h>
#include <lora/shrink.h>
#include <lora/tiles.h>
#include <tile/epilogue.h>

namespace lora {

using namespace gpu;

/// TILE is one of the decode tiles of lora/tiles.h.
template <class E, class TILE>
class DecodeTile {
 public:
  static constexpr u32 tokens = TILE::tokens, threads = TILE::threads, warps = threads / warp_size;

  GPU_DEVICE DecodeTile(const LoraDecode& params, u32 parts)
      : p(params),
        shared(),
        factors(SegmentFactors::take_room(shared)),
        shrink(params, factors, shared),
        expand(params, factors, shared),
        parts(parts),
        first_token(blockIdx.z * tokens),
        first_column(blockIdx.x * params.tile_columns),
        columns(gpu::min(params.tile_columns, params.columns - first_column)),
        stride(params.sums_stride),
        sums(shared.take<float>(parts * tokens * stride)) {}

  /// Waits for the launch ahead and computes this CTA's share of T. Callers prefetch the first rows of W0 into L2 before it.
  GPU_DEVICE void low_rank_input() {
    grid_dependency_launch();
    grid_dependency_wait();
    if (p.total_rank != 0) epoch = shrink.run();
  }

  /// The partial sum `part` of a token and a column, both counted from the tile's first.
  GPU_DEVICE float& sum(u32 part, u32 token, u32 column) { return sums[(part * tokens + token) * stride + column]; }

  /// Adds the parts of every sum, the splits of K, the bias and the low-rank terms, then stores the tile. All threads of the
  /// CTA call it.
  GPU_DEVICE void finish() {
    sync_block();
    for (u32 i = threadIdx.x; i < tokens * columns; i += threads) {
      const u32 m = i / columns, c = i % columns;
      float total = sum(0, m, c);
      for (u32 part = 1; part < parts; part++) total += sum(part, m, c);
      sum(0, m, c) = total;
    }
    if (!reduce_splits()) return;
    if (p.bias) {
      for (u32 i = threadIdx.x; i < tokens * columns; i += threads) {
        const u32 m = i / columns, c = i % columns;
        sum(0, m, c) += to_f32(load_constant(static_cast<const E*>(p.bias) + first_column + c));
      }
    }
    sync_block();
    if (p.total_rank != 0) expand.run(sums, stride, first_token, first_column, columns, epoch);
    for (u32 i = threadIdx.x; i < tokens * columns; i += threads) {
      const u32 m = i / columns, c = i % columns, token = first_token + m;
      if (token >= p.tokens) continue;
      const E* residual = static_cast<const E*>(p.residual);
      if (residual) residual += u64(token) * p.residual_stride + first_column + c;
      E* y = static_cast<E*>(p.y) + u64(token) * p.y_stride + first_column + c;
      tile::finish<E>(sum(0, m, c), p.activation, residual, y);
    }
  }

  const LoraDecode& p;

 private:
  SharedMemory shared;
  SegmentFactors factors;
  Shrink<E, TILE> shrink;
  Expand<E, TILE> expand;
  u32 parts;

 public:
  const u32 first_token;
  const u32 first_column;
  const u32 columns;

 private:
  /// Split-K: stores this CTA's sums in the workspace; the last CTA to arrive adds the sums of all splits in their order.
  /// Returns whether this CTA is the last; without splits it is.
  GPU_DEVICE bool reduce_splits() {
    if (p.splits == 1) return true;
    const u32 tile = blockIdx.z * gridDim.x + blockIdx.x, size = tokens * p.tile_columns;
    float* partial = p.partial + u64(tile) * p.splits * size;
    for (u32 i = threadIdx.x; i < tokens * columns; i += threads) {
      store(partial + u64(blockIdx.y) * size + i, sum(0, i / columns, i % columns));
    }
    sync_block();
    bool last = false;
    if (threadIdx.x == 0) {
      last = fetch_add_acq_rel(p.arrivals + tile, 1u) == p.splits - 1;
      if (last) store_relaxed(p.arrivals + tile, 0u);
    }
    if (!sync_block_or(last)) return false;
    for (u32 i = threadIdx.x; i < tokens * columns; i += threads) {
      float total = load(partial + i);
      for (u32 split = 1; split < p.splits; split++) total += load(partial + u64(split) * size + i);
      sum(0, i / columns, i % columns) = total;
    }
    return true;
  }

  /// Floats from one token's sums to the next.
  u32 stride;
  float* sums;
  u32 epoch = 0;
};

}  // namespace lora

/// A decode kernel: FUNCTION<E, TILE>, a line of lora/tiles.h.
#define DECODE(NAME, FUNCTION, E, TILE)                                               \
  GPU_KERNEL(NAME, LoraDecode, lora::tiles::TILE::threads, lora::tiles::TILE::ctas) { \
    lora::FUNCTION<gpu::E, lora::tiles::TILE>(params);                                \
  }
