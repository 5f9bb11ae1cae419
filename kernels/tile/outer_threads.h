// A warp's part of leftᵀ·right on CUDA cores. Both operands are MN-major: a row has all columns of one k. Tiles are in
// swizzled shared memory, sums are f32 in registers, and every fma rounds once.
//
// A lane owns four rows of the result from 4·(lane / 4) on and, of every 16 columns, four from 4·(lane % 4) on. So for each
// k it loads 4 values of the left tile and 4 for every 16 columns of the right one, in f32 16 bytes at a time: with 64
// columns, 5 loads for 64 products. Eight neighbouring chunks of a row are in different banks.
#pragma once

#include <gpu/convert.h>
#include <gpu/math.h>
#include <gpu/memory.h>
#include <gpu/warp.h>
#include <tile/staged.h>

namespace tile {

using namespace gpu;

/// The sums of ROWS columns of the left tile with COLUMNS columns of the right one.
template <class E, u32 ROWS, u32 COLUMNS>
class OuterThreads {
 public:
  static constexpr u32 sums = ROWS * COLUMNS / warp_size;
  static_assert(ROWS == 32 && COLUMNS % 16 == 0, "8 lanes down, 4 across");

  GPU_DEVICE void clear() {
#pragma unroll
    for (u32 i = 0; i < sums; i++) d[i / 4][i % 4] = 0.0f;
  }

  /// The i-th group of four of a lane's sums: neighbouring columns of one row.
  GPU_DEVICE float (&quad(u32 i))[4] { return d[i]; }

  /// The lowest column of the i-th group in any lane.
  static constexpr GPU_DEVICE u32 first_column_of_quad(u32 i) { return i / 4 * 16; }

  /// Calls take(row, column, sum) for a lane's sums in the 16 columns from 16·step on; `column` is 0 to 15.
  template <class F>
  GPU_DEVICE void each_of_step(u32 step, F&& take) const {
#pragma unroll
    for (u32 i = 0; i < 16; i++) {
      take(lane_id() / 4 * 4 + i / 4, lane_id() % 4 * 4 + i % 4, d[4 * step + i / 4][i % 4]);
    }
  }

  /// d += leftᵀ·right over a stage of DEPTH rows, for the columns of the left tile (HEIGHT wide) from `row` on and the first
  /// `columns` of the right tile (WIDTH wide), in whole steps of 16.
  template <u32 DEPTH, u32 HEIGHT, u32 WIDTH>
  GPU_DEVICE void multiply(const Chunk* left, u32 row, const Chunk* right, u32 columns) {
#pragma unroll 2
    for (u32 k = 0; k < DEPTH; k++) {
      float a[4];
      load_four<HEIGHT>(a, left, k, row + lane_id() / 4 * 4);
#pragma unroll
      for (u32 step = 0; step < COLUMNS / 16; step++) {
        if (16 * step >= columns) break;
        float b[4];
        load_four<WIDTH>(b, right, k, 16 * step + lane_id() % 4 * 4);
#pragma unroll
        for (u32 i = 0; i < 16; i++) {
          float& sum = d[4 * step + i / 4][i % 4];
          sum = gpu::fma(a[i / 4], b[i % 4], sum);
        }
      }
    }
  }

 private:
  /// Four values from column `column`, a multiple of 4, of a row of a tile that is WIDTH wide.
  template <u32 WIDTH>
  static GPU_DEVICE void load_four(float (&out)[4], const Chunk* tile, u32 row, u32 column) {
    const Chunk* chunk = tile + swizzled<WIDTH / chunk_elements<E>>(row, column / chunk_elements<E>);
    if constexpr (same_type<E, float>) {
      unpack<float>(load_shared(chunk), out);
    } else {
      const u32* pair = chunk->word + column % 8 / 2;
      unpack<E>(pair[0], out[0], out[1]);
      unpack<E>(pair[1], out[2], out[3]);
    }
  }

  float d[sums / 4][4];
};

}  // namespace tile
