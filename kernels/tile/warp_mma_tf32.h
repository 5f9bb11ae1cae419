// A warp's part of a tile's product of f32 in TF32: fragments come from swizzled shared memory and are rounded to 10
// fraction bits in registers; sums are f32.
//
// K-major operands come by ldmatrix, which takes the four f32 of a chunk for eight 16-bit values: lane l gets value l % 4 of
// the chunk of row l / 4, which is the fragment of mma.m16n8k8.
//
// An MN-major right operand (W0 [in, out]) would have to be transposed, which ldmatrix does for 16-bit values only. But any
// eight columns can be the columns of an MMA. With g = lane / 4 and t = lane % 4, a lane needs rows t and t + 4 of K: it
// loads a chunk of each, and the four values of a chunk go to four different MMAs. Of eight neighbouring chunks, lanes g
// take chunk g / 2 + 4·(g % 2). Shared memory serves eight lanes of a 16-byte load at a time, here two values of g and four
// of t: two chunks, which differ in bit 2, of four rows, which differ in bits 0 and 1. So the swizzle (chunk ^ row % 8) puts
// them in eight different groups of banks. If lanes g took chunk g, there would be four groups with a conflict of two lanes
// each.
//
// B is K-major, and its fragments are loaded with the columns in this order. The eight columns of an MMA, rows of B's tile,
// have only two different values modulo 8, so ldmatrix takes four times as long for B: in the adapters' steps, not in those
// of W0.
//
// Cost: every warp rounds what it loads, three instructions per register (compare, add, mask).
#pragma once

#include <gpu/convert.h>
#include <gpu/memory.h>
#include <gpu/mma.h>
#include <gpu/shared.h>
#include <gpu/warp.h>
#include <tile/staged.h>

namespace tile {

using namespace gpu;

/// The sums of ROWS16 × COLUMNS8 MMAs: d[m][n] has rows from 16·m on and columns `column_of(n, 0)` to `column_of(n, 7)`, in
/// the layout of C in gpu/mma.h. WEIGHT is the contiguous dimension of the right operand of `multiply`.
template <u32 ROWS16, u32 COLUMNS8, Major WEIGHT>
struct WarpTileTf32 {
  /// Consecutive MMAs whose fragments are loaded together and whose columns are contiguous.
  static constexpr u32 group = WEIGHT == Major::K ? 2 : 4;
  static_assert(COLUMNS8 % group == 0, "the right operand comes a group of instructions at a time");
  static constexpr u32 sums = ROWS16 * COLUMNS8 * 4;
  float d[ROWS16][COLUMNS8][4];

  /// Column g of MMA n.
  static constexpr GPU_DEVICE u32 column_of(u32 n, u32 g) {
    return WEIGHT == Major::K ? 8 * n + g : n / 4 * 32 + (g / 2 + g % 2 * 4) * 4 + n % 4;
  }

  /// The i-th group of four of a lane's sums.
  GPU_DEVICE float (&quad(u32 i))[4] { return d[i / COLUMNS8][i % COLUMNS8]; }

  /// The lowest column of the i-th group in any lane.
  static constexpr GPU_DEVICE u32 first_column_of_quad(u32 i) { return column_of(i % COLUMNS8, 0); }

  /// Calls take(row, column, sum) for a lane's sums in the 16 rows from 16·m on; `row` is 0 to 15.
  template <class F>
  GPU_DEVICE void each_of_rows(u32 m, F&& take) const {
#pragma unroll
    for (u32 n = 0; n < COLUMNS8; n++) {
#pragma unroll
      for (u32 i = 0; i < 4; i++) take(lane_id() / 4 + 8 * (i / 2), mine(n, i), d[m][n][i]);
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
    static_assert(RIGHT == WEIGHT, "what the columns were dealt out for");
#pragma unroll
    for (u32 k = 0; k < DEPTH / 8; k++) {
      u32 a[ROWS16][4], b[COLUMNS8 / group][group][2];
#pragma unroll
      for (u32 m = 0; m < ROWS16; m++) load_left<DEPTH>(a[m], left, row + 16 * m, k);
#pragma unroll
      for (u32 n = 0; n < COLUMNS8; n += group) {
        if constexpr (RIGHT == Major::K) {
          load_along<DEPTH>(b[n / group], right, column, n, k);
        } else {
          load_across<WIDTH>(b[n / group], right, column, n, k);
        }
      }
#pragma unroll
      for (u32 m = 0; m < ROWS16; m++) {
#pragma unroll
        for (u32 n = 0; n < COLUMNS8; n++) mma_m16n8k8_tf32(d[m][n], a[m], b[n / group][n % group]);
      }
    }
  }

  /// The same for columns `begin` to `end` of the tile only, over the first 16·`steps` values of K. Not a bit of another
  /// column changes, whatever the operands hold. The right operand is K-major.
  template <u32 DEPTH, u32 WIDTH, Major RIGHT>
  GPU_DEVICE void multiply_within(const Chunk* left, u32 row, const Chunk* right, u32 column, u32 steps, u32 begin,
                                  u32 end) {
    static_assert(RIGHT == Major::K, "factors of a forward pass");
#pragma unroll
    for (u32 k = 0; k < DEPTH / 8; k++) {
      if (k >= 2 * steps) break;
      u32 a[ROWS16][4];
#pragma unroll
      for (u32 m = 0; m < ROWS16; m++) load_left<DEPTH>(a[m], left, row + 16 * m, k);
#pragma unroll
      for (u32 n = 0; n < COLUMNS8; n += 2) {
        const u32 first = column + column_of(n / group * group, 0);
        if (first >= end || first + 8 * group <= begin) continue;
        u32 b[2][2];
        load_along<DEPTH>(b, right, column, n, k);
#pragma unroll
        for (u32 m = 0; m < ROWS16; m++) {
          add_within(d[m][n], a[m], b[0], column, n, begin, end);
          add_within(d[m][n + 1], a[m], b[1], column, n + 1, begin, end);
        }
      }
    }
  }

 private:
  /// The column of this lane's sum i of MMA n.
  static GPU_DEVICE u32 mine(u32 n, u32 i) { return column_of(n, lane_id() % 4 * 2 + i % 2); }

  template <u32 COUNT>
  static GPU_DEVICE void round(u32 (&words)[COUNT]) {
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) words[i] = to_tf32(from_bits(words[i]));
  }

  // Moving 2k chunks along a row is an XOR of the address with 32·k, because rows are whole multiples of their swizzle's
  // width.

  /// The fragment of rows `row` to `row` + 15 and of K step k, 8 values.
  template <u32 DEPTH>
  static GPU_DEVICE void load_left(u32 (&a)[4], const Chunk* tile, u32 row, u32 k) {
    const u32 lane = lane_id();
    ldmatrix_x4(a, shared_address(tile + swizzled<DEPTH / 4>(row + lane % 16, lane / 16)) ^ 32 * k);
    round(a);
  }

  /// The fragments of MMAs n and n + 1.
  template <u32 DEPTH>
  static GPU_DEVICE void load_along(u32 (&b)[2][2], const Chunk* tile, u32 column, u32 n, u32 k) {
    const u32 lane = lane_id(), row = column + column_of(n + lane / 16, lane % 8);
    u32 all[4];
    ldmatrix_x4(all, shared_address(tile + swizzled<DEPTH / 4>(row, lane / 8 % 2)) ^ 32 * k);
    round(all);
#pragma unroll
    for (u32 i = 0; i < 4; i++) b[i / 2][i % 2] = all[i];
  }

  /// The fragments of MMAs n to n + 3.
  template <u32 WIDTH>
  static GPU_DEVICE void load_across(u32 (&b)[4][2], const Chunk* tile, u32 column, u32 n, u32 k) {
    const u32 lane = lane_id(), chunk = (column + column_of(n, lane / 4)) / 4;
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
      Chunk four = load_shared(tile + swizzled<WIDTH / 4>(8 * k + lane % 4 + 4 * i, chunk));
      round(four.word);
#pragma unroll
      for (u32 j = 0; j < 4; j++) b[j][i] = four.word[j];
    }
  }

  static GPU_DEVICE void add_within(float (&sum)[4], const u32 (&a)[4], const u32 (&b)[2], u32 column, u32 n, u32 begin,
                                    u32 end) {
    float total[4] = {sum[0], sum[1], sum[2], sum[3]};
    mma_m16n8k8_tf32(total, a, b);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      const u32 at = column + mine(n, i);
      if (at >= begin && at < end) sum[i] = total[i];
    }
  }
};

struct Tf32TensorCores {
  template <class E, u32 ROWS, u32 COLUMNS, Major WEIGHT>
  using Sums = WarpTileTf32<ROWS / 16, COLUMNS / 8, WEIGHT>;
};

}  // namespace tile
