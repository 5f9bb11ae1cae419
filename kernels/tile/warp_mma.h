// A warp's part of a tile's product on tensor cores: fragments come from swizzled shared memory by ldmatrix, sums are in
// registers.
//
// The left operand is K-major. The right operand is K-major (in the forward pass W0 [out, in], A and B) or MN-major (W0 [in,
// out]; in dx A and B); ldmatrix transposes the latter.
#pragma once

#include <gpu/mma.h>
#include <gpu/shared.h>
#include <gpu/warp.h>
#include <tile/dropout.h>
#include <tile/staged.h>

namespace tile {

using namespace gpu;

/// The sums of ROWS16 × COLUMNS8 MMAs: d[m][n] has rows from 16·m and columns from 8·n on, in the layout of C in gpu/mma.h.
template <class E, u32 ROWS16, u32 COLUMNS8>
struct WarpTile {
  static_assert(COLUMNS8 % 2 == 0, "the right operand comes 16 columns at a time");
  static constexpr u32 sums = ROWS16 * COLUMNS8 * 4;
  float d[ROWS16][COLUMNS8][4];

  /// The i-th group of four of a lane's sums.
  GPU_DEVICE float (&quad(u32 i))[4] { return d[i / COLUMNS8][i % COLUMNS8]; }

  /// The lowest column of the i-th group in any lane.
  static constexpr GPU_DEVICE u32 first_column_of_quad(u32 i) { return i % COLUMNS8 * 8; }

  /// Calls take(row, column, sum) for a lane's sums in the 16 rows from 16·m on; `row` is 0 to 15.
  template <class F>
  GPU_DEVICE void each_of_rows(u32 m, F&& take) const {
#pragma unroll
    for (u32 n = 0; n < COLUMNS8; n++) {
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        take(lane_id() / 4 + 8 * (i / 2), 8 * n + lane_id() % 4 * 2 + i % 2, d[m][n][i]);
      }
    }
  }

  GPU_DEVICE void clear() {
#pragma unroll
    for (u32 m = 0; m < ROWS16; m++) {
#pragma unroll
      for (u32 n = 0; n < COLUMNS8; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) d[m][n][i] = 0.0f;
      }
    }
  }

  /// d += left·right over one stage of DEPTH values of K, for the rows of the left tile from `row` on and the columns of the
  /// right tile (WIDTH wide) from `column` on.
  template <u32 DEPTH, u32 WIDTH, Major RIGHT>
  GPU_DEVICE void multiply(const Chunk* left, u32 row, const Chunk* right, u32 column) {
#pragma unroll
    for (u32 k = 0; k < DEPTH / 16; k++) {
      u32 a[ROWS16][4];
#pragma unroll
      for (u32 m = 0; m < ROWS16; m++) load_left<DEPTH>(a[m], left, row + 16 * m, k);
#pragma unroll
      for (u32 n = 0; n < COLUMNS8; n += 2) {
        u32 b[2][2];
        load_right<DEPTH, WIDTH, RIGHT>(b, right, column + 8 * n, k);
#pragma unroll
        for (u32 m = 0; m < ROWS16; m++) {
          mma_m16n8k16<E>(d[m][n], a[m], b[0]);
          mma_m16n8k16<E>(d[m][n + 1], a[m], b[1]);
        }
      }
    }
  }

  /// The same for columns `begin` to `end` of the tile only, over the first 16·`steps` values of K. Not a bit of another
  /// column changes, whatever the operands hold.
  template <u32 DEPTH, u32 WIDTH, Major RIGHT>
  GPU_DEVICE void multiply_within(const Chunk* left, u32 row, const Chunk* right, u32 column, u32 steps, u32 begin,
                                  u32 end) {
#pragma unroll
    for (u32 k = 0; k < DEPTH / 16; k++) {
      if (k >= steps) break;
      u32 a[ROWS16][4];
#pragma unroll
      for (u32 m = 0; m < ROWS16; m++) load_left<DEPTH>(a[m], left, row + 16 * m, k);
#pragma unroll
      for (u32 n = 0; n < COLUMNS8; n += 2) {
        const u32 first = column + 8 * n;
        if (first >= end || first + 16 <= begin) continue;
        u32 b[2][2];
        load_right<DEPTH, WIDTH, RIGHT>(b, right, first, k);
#pragma unroll
        for (u32 m = 0; m < ROWS16; m++) {
          add_within(d[m][n], a[m], b[0], first, begin, end);
          add_within(d[m][n + 1], a[m], b[1], first + 8, begin, end);
        }
      }
    }
  }

  /// d += dropout.scale·left·right in the elements that dropout keeps, over the first 16·`steps` values of K. The tile
  /// starts at row `first_row` and column `first_column` of x. Besides d it holds the sums of 16 rows only.
  template <u32 DEPTH, u32 WIDTH, Major RIGHT>
  GPU_DEVICE void multiply_with_mask(const Chunk* left, u32 row, const Chunk* right, u32 column, u32 steps,
                                const LoraDropout& dropout, u32 first_row, u32 first_column) {
    static_assert(COLUMNS8 == 4, "one block of the mask");
    const u32 block = (first_column + column) / 32;
#pragma unroll
    for (u32 m = 0; m < ROWS16; m++) {
      // The mask is computed before the sums: the sums and Philox's words together would take too many registers.
      u32 kept = 0;
#pragma unroll 1
      for (u32 half = 0; half < 2; half++) {
        const u32 mask_row = first_row + row + 16 * m + 8 * half + lane_id() / 4;
        kept |= kept_of_eight(dropout, mask_row, block, lane_id() % 4) << (8 * half);
      }
      WarpTile<E, 1, COLUMNS8> sum;
      sum.clear();
      sum.template multiply_within<DEPTH, WIDTH, RIGHT>(left, row + 16 * m, right, column, steps, 0, ~0u);
#pragma unroll
      for (u32 i = 0; i < 4 * COLUMNS8; i++) {
        const u32 n = i / 4, bit = 8 * (i / 2 % 2) + 2 * n + i % 2;
        if (kept >> bit & 1) d[m][n][i % 4] = gpu::fma(dropout.scale, sum.d[0][n][i % 4], d[m][n][i % 4]);
      }
    }
  }

 private:
  /// The fragment of rows `row` to `row` + 15 and of K step k, 16 values.
  template <u32 DEPTH>
  static GPU_DEVICE void load_left(u32 (&a)[4], const Chunk* tile, u32 row, u32 k) {
    const u32 lane = lane_id();
    ldmatrix_x4(a, shared_address(tile + swizzled<DEPTH / 8>(row + lane % 16, 2 * k + lane / 16)));
  }

  /// The fragments of 16 columns: b[0] has the first 8, b[1] the others.
  template <u32 DEPTH, u32 WIDTH, Major RIGHT>
  static GPU_DEVICE void load_right(u32 (&b)[2][2], const Chunk* tile, u32 column, u32 k) {
    const u32 lane = lane_id(), in_matrix = lane % 8, second = lane / 8 % 2, upper = lane / 16;
    u32 all[4];
    if constexpr (RIGHT == Major::K) {
      ldmatrix_x4(all, shared_address(tile + swizzled<DEPTH / 8>(column + 8 * upper + in_matrix, 2 * k + second)));
    } else {
      const u32 row = 16 * k + 8 * second + in_matrix;
      ldmatrix_x4_trans(all, shared_address(tile + swizzled<WIDTH / 8>(row, column / 8 + upper)));
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) b[i / 2][i % 2] = all[i];
  }

  static GPU_DEVICE void add_within(float (&sum)[4], const u32 (&a)[4], const u32 (&b)[2], u32 column, u32 begin,
                                    u32 end) {
    if (column >= end || column + 8 <= begin) return;
    float total[4] = {sum[0], sum[1], sum[2], sum[3]};
    mma_m16n8k16<E>(total, a, b);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      const u32 mine = column + lane_id() % 4 * 2 + i % 2;
      if (mine >= begin && mine < end) sum[i] = total[i];
    }
  }
};

struct TensorCores {
  template <class E, u32 ROWS, u32 COLUMNS, Major WEIGHT>
  using Sums = WarpTile<E, ROWS / 16, COLUMNS / 8>;
};

}  // namespace tile
