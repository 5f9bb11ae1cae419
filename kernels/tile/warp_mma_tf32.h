// A warp's part of a tile's product of f32 in TF32: operands from swizzled shared memory, rounded to 10 fraction bits
// in registers, sums in f32.
//
// Operands that run along the depth come by ldmatrix, to which 16 bytes of a row are eight values of 16 bits: a lane
// gets one f32, row lane / 4 and value lane % 4 of eight rows' chunks, which is the fragment of mma.m16n8k8.
//
// A right operand that runs across the depth (W0 [in, out]) would have to be transposed, which ldmatrix does to 16 bits
// only. But which columns an instruction takes is free. Lane (g, t), g = lane / 4, t = lane % 4, wants rows t and t + 4
// of the depth: it reads a chunk of either, and each of the four values is of a column of another instruction. Of the
// eight chunks beside each other lane g takes g / 2 + 4·(g % 2). Eight lanes are served at a time, those of two chunks
// that differ in bit 2, by four rows that differ in bits 0 and 1: the swizzle (chunk ^ row % 8) makes eight places of
// them. With chunk g for lane g they would be four places of two lanes each.
//
// B, which runs along the depth, follows these columns. Only two of an instruction's eight differ modulo 8, so ldmatrix
// takes four times as long over them: in the adapters' steps, not in those of the depth.
//
// Cost: every warp rounds what it reads, in three instructions a register (compare, add, mask).
#pragma once

#include <gpu/convert.h>
#include <gpu/memory.h>
#include <gpu/mma.h>
#include <gpu/shared.h>
#include <gpu/warp.h>
#include <tile/staged.h>

namespace tile {

using namespace gpu;

/// Sums of ROWS16 × COLUMNS8 instructions: d[m][n] is rows 16·m on and the columns `column_of(n, 0)` to
/// `column_of(n, 7)`, laid out as C in gpu/mma.h. WEIGHT is how the right operand of `multiply` runs.
template <u32 ROWS16, u32 COLUMNS8, Major WEIGHT>
struct WarpTileTf32 {
  /// Neighbouring instructions whose columns are neighbours.
  static constexpr u32 group = WEIGHT == Major::K ? 2 : 4;
  static_assert(COLUMNS8 % group == 0, "the right operand comes a group of instructions at a time");
  static constexpr u32 sums = ROWS16 * COLUMNS8 * 4;
  float d[ROWS16][COLUMNS8][4];

  /// Column g of instruction n.
  static constexpr GPU_DEVICE u32 column_of(u32 n, u32 g) {
    return WEIGHT == Major::K ? 8 * n + g : n / 4 * 32 + (g / 2 + g % 2 * 4) * 4 + n % 4;
  }

  /// The i-th four sums of a lane.
  GPU_DEVICE float (&four(u32 i))[4] { return d[i / COLUMNS8][i % COLUMNS8]; }

  /// No lane's i-th four sums are of a column before this one.
  static constexpr GPU_DEVICE u32 first_column_of_four(u32 i) { return column_of(i % COLUMNS8, 0); }

  /// Calls take(row, column, sum) for a lane's sums among the 16 rows from 16·m on.
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

  /// d += left·right over one stage of DEPTH, from row `row` and column `column` of the tiles on; WIDTH is the right
  /// tile's.
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

  /// The same for the columns `begin` to `end` of the tile only, and the first `steps` times 16 of the depth: not a bit
  /// of another column changes, whatever the operands hold. The right operand's rows run along the depth.
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
  /// The column of this lane's i-th sum of instruction n.
  static GPU_DEVICE u32 mine(u32 n, u32 i) { return column_of(n, lane_id() % 4 * 2 + i % 2); }

  template <u32 COUNT>
  static GPU_DEVICE void round(u32 (&words)[COUNT]) {
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) words[i] = to_tf32(from_bits(words[i]));
  }

  // Two chunks further along a row is two bits of the address: rows are whole multiples of their swizzle's width.

  /// Rows `row` to `row` + 16, 8 values of the depth.
  template <u32 DEPTH>
  static GPU_DEVICE void load_left(u32 (&a)[4], const Chunk* tile, u32 row, u32 k) {
    const u32 lane = lane_id();
    ldmatrix_x4(a, shared_address(tile + swizzled<DEPTH / 4>(row + lane % 16, lane / 16)) ^ 32 * k);
    round(a);
  }

  /// For instructions n and n + 1.
  template <u32 DEPTH>
  static GPU_DEVICE void load_along(u32 (&b)[2][2], const Chunk* tile, u32 column, u32 n, u32 k) {
    const u32 lane = lane_id(), row = column + column_of(n + lane / 16, lane % 8);
    u32 all[4];
    ldmatrix_x4(all, shared_address(tile + swizzled<DEPTH / 4>(row, lane / 8 % 2)) ^ 32 * k);
    round(all);
#pragma unroll
    for (u32 i = 0; i < 4; i++) b[i / 2][i % 2] = all[i];
  }

  /// For instructions n to n + 3.
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
