// A warp's part of leftᵀ·right on tensor cores. Both operands are MN-major: a row has all columns of one k, as a row of
// activations has in a sum over tokens. Tiles are DEPTH rows in swizzled shared memory; ldmatrix transposes them.
#pragma once

#include <gpu/mma.h>
#include <gpu/shared.h>
#include <gpu/warp.h>
#include <tile/staged.h>

namespace tile {

using namespace gpu;

/// The sums of ROWS columns of the left tile with COLUMNS columns of the right one: d[m][n] has rows from 16·m and columns
/// from 8·n on, in the layout of C in gpu/mma.h.
template <class E, u32 ROWS, u32 COLUMNS>
class OuterMma {
 public:
  static constexpr u32 rows_16 = ROWS / 16, columns_8 = COLUMNS / 8, sums = rows_16 * columns_8 * 4;
  static_assert(COLUMNS % 16 == 0, "the right operand comes 16 columns at a time");

  GPU_DEVICE void clear() {
#pragma unroll
    for (u32 i = 0; i < sums; i++) quad(i / 4)[i % 4] = 0.0f;
  }

  /// The i-th group of four of a lane's sums.
  GPU_DEVICE float (&quad(u32 i))[4] { return d[i / columns_8][i % columns_8]; }

  /// The lowest column of the i-th group in any lane.
  static constexpr GPU_DEVICE u32 first_column_of_quad(u32 i) { return i % columns_8 * 8; }

  /// Calls take(row, column, sum) for a lane's sums in the 16 columns from 16·step on; `column` is 0 to 15.
  template <class F>
  GPU_DEVICE void each_of_step(u32 step, F&& take) const {
#pragma unroll
    for (u32 m = 0; m < rows_16; m++) {
#pragma unroll
      for (u32 i = 0; i < 8; i++) {
        const u32 column = 8 * (i / 4) + lane_id() % 4 * 2 + i % 2;
        take(16 * m + lane_id() / 4 + 8 * (i / 2 % 2), column, d[m][2 * step + i / 4][i % 4]);
      }
    }
  }

  /// d += leftᵀ·right over a stage of DEPTH rows, for the columns of the left tile (HEIGHT wide) from `row` on and the first
  /// `columns` of the right tile (WIDTH wide), in whole steps of 16.
  template <u32 DEPTH, u32 HEIGHT, u32 WIDTH>
  GPU_DEVICE void multiply(const Chunk* left, u32 row, const Chunk* right, u32 columns) {
    static_assert(DEPTH % 16 == 0, "a product takes 16 rows");
    // Of the four matrices of an ldmatrix the second is the next 8 columns of the left tile, but the next 8 rows of the
    // right one.
    const u32 in_matrix = lane_id() % 8, odd = lane_id() / 8 % 2, upper = lane_id() / 16;
#pragma unroll
    for (u32 k = 0; k < DEPTH; k += 16) {
      u32 a[rows_16][4];
#pragma unroll
      for (u32 m = 0; m < rows_16; m++) {
        const Chunk* place = left + swizzled<HEIGHT / 8>(k + 8 * upper + in_matrix, row / 8 + 2 * m + odd);
        ldmatrix_x4_trans(a[m], shared_address(place));
      }
#pragma unroll
      for (u32 n = 0; n < columns_8; n += 2) {
        if (8 * n >= columns) break;
        u32 b[4];
        ldmatrix_x4_trans(b, shared_address(right + swizzled<WIDTH / 8>(k + 8 * odd + in_matrix, n + upper)));
        const u32 first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
        for (u32 m = 0; m < rows_16; m++) {
          mma_m16n8k16<E>(d[m][n], a[m], first);
          mma_m16n8k16<E>(d[m][n + 1], a[m], second);
        }
      }
    }
  }

 private:
  float d[rows_16][columns_8][4];
};

}  // namespace tile
