// A warp's part of a tile's product on CUDA cores: operands come from swizzled shared memory 16 bytes at a time, sums are
// f32 in registers, and every fma rounds once.
//
// A lane owns rows r, r + 8, r + 16, ... with r = lane / 4. With a K-major right operand it owns columns c, c + 4, c + 8,
// ... with c = lane % 4: the warp's loads read 8 neighbouring rows of the left tile or 4 of the right one, which the swizzle
// puts in different banks. With an MN-major right operand it owns whole chunks of columns: chunks c, c + 4, ...
#pragma once

#include <gpu/convert.h>
#include <gpu/math.h>
#include <gpu/memory.h>
#include <gpu/warp.h>
#include <tile/dropout.h>
#include <tile/staged.h>

namespace tile {

using namespace gpu;

template <class E, u32 ROWS, u32 COLUMNS, Major WEIGHT>
class ThreadTile {
 public:
  static constexpr u32 elements = chunk_elements<E>, height = ROWS / 8, width = COLUMNS / 4, sums = height * width;
  static_assert(WEIGHT == Major::K || width % elements == 0, "a lane owns whole chunks");

  float d[sums / 4][4];

  GPU_DEVICE void clear() {
#pragma unroll
    for (u32 i = 0; i < sums; i++) d[i / 4][i % 4] = 0.0f;
  }

  /// d += left·right over one stage of DEPTH values of K, for the rows of the left tile from `row` on and the columns of the
  /// right tile (WIDTH wide) from `column` on.
  template <u32 DEPTH, u32 WIDTH, Major RIGHT>
  GPU_DEVICE void multiply(const Chunk* left, u32 row, const Chunk* right, u32 column) {
    static_assert(RIGHT == WEIGHT, "what the columns were dealt out for");
#pragma unroll 1
    for (u32 k = 0; k < DEPTH / elements; k++) {
      Chunk a[height];
      load_left<DEPTH>(a, left, row, k);
      if constexpr (WEIGHT == Major::K) {
#pragma unroll
        for (u32 j = 0; j < width; j++) add(a, j, load_shared(right + swizzled<DEPTH / elements>(column + mine(j), k)));
      } else {
#pragma unroll
        for (u32 e = 0; e < elements; e++) {
#pragma unroll
          for (u32 j = 0; j < width; j += elements) {
            const u32 chunk = (column + mine(j)) / elements;
            add_across(a, e, j, load_shared(right + swizzled<WIDTH / elements>(k * elements + e, chunk)));
          }
        }
      }
    }
  }

  /// The same for columns `begin` to `end` of the tile only, over the first 16·`steps` values of K. Not a bit of another
  /// column changes, whatever the operands hold. Where a lane owns whole chunks of an MN-major right operand, `begin` and
  /// `end` must be multiples of a chunk.
  template <u32 DEPTH, u32 WIDTH, Major RIGHT>
  GPU_DEVICE void multiply_within(const Chunk* left, u32 row, const Chunk* right, u32 column, u32 steps, u32 begin,
                                  u32 end) {
    if constexpr (RIGHT == Major::MN && WEIGHT == Major::K) {
      multiply_values<DEPTH, WIDTH>(left, row, right, column, gpu::min(DEPTH, 16 * steps), begin, end);
    } else {
      multiply_chunks<DEPTH, WIDTH, RIGHT>(left, row, right, column, gpu::min(DEPTH, 16 * steps), begin, end);
    }
  }

  /// d += dropout.scale·left·right in the elements that dropout keeps, over the first 16·`steps` values of K. The tile
  /// starts at row `first_row` and column `first_column` of x. Besides d it holds the sums of 16 rows only.
  template <u32 DEPTH, u32 WIDTH, Major RIGHT>
  GPU_DEVICE void multiply_with_mask(const Chunk* left, u32 row, const Chunk* right, u32 column, u32 steps,
                                const LoraDropout& dropout, u32 first_row, u32 first_column) {
    static_assert(COLUMNS == 32, "one block of the mask");
#pragma unroll
    for (u32 m = 0; m < ROWS / 16; m++) {
      ThreadTile<E, 16, COLUMNS, WEIGHT> sum;
      sum.clear();
      sum.template multiply_within<DEPTH, WIDTH, RIGHT>(left, row + 16 * m, right, column, steps, 0, ~0u);
#pragma unroll
      for (u32 i = 0; i < 2; i++) {
        const u32 mask_row = first_row + row + 16 * m + 8 * i + lane_id() / 4;
        const u32 kept = kept_of_block(dropout, mask_row, (first_column + column) / 32);
#pragma unroll
        for (u32 j = 0; j < width; j++) {
          float& total = d[((2 * m + i) * width + j) / 4][j % 4];
          if (kept >> mine(j) & 1) total = gpu::fma(dropout.scale, sum.d[(i * width + j) / 4][j % 4], total);
        }
      }
    }
  }

  /// The i-th group of four of a lane's sums.
  GPU_DEVICE float (&quad(u32 i))[4] { return d[i]; }

  /// The lowest column of the i-th group in any lane.
  static constexpr GPU_DEVICE u32 first_column_of_quad(u32 i) {
    static_assert(width % 4 == 0, "four sums are of one row");
    const u32 j = 4 * i % width;
    return WEIGHT == Major::K ? 4 * j : j / elements * 4 * elements + j % elements;
  }

  /// Calls take(row, column, sum) for a lane's sums in the 16 rows from 16·m on; `row` is 0 to 15.
  template <class F>
  GPU_DEVICE void each_of_rows(u32 m, F&& take) const {
#pragma unroll
    for (u32 i = 2 * m; i < 2 * m + 2; i++) {
#pragma unroll
      for (u32 j = 0; j < width; j++) {
        take(lane_id() / 4 + i % 2 * 8, mine(j), d[(i * width + j) / 4][(i * width + j) % 4]);
      }
    }
  }

 private:
  /// multiply_within where a lane reads whole chunks of the right operand: of the columns that it owns, or of K in one
  /// column.
  template <u32 DEPTH, u32 WIDTH, Major RIGHT>
  GPU_DEVICE void multiply_chunks(const Chunk* left, u32 row, const Chunk* right, u32 column, u32 depth, u32 begin,
                                  u32 end) {
#pragma unroll 1
    for (u32 k = 0; k < depth / elements; k++) {
      Chunk a[height];
      load_left<DEPTH>(a, left, row, k);
      if constexpr (RIGHT == Major::K) {
#pragma unroll
        for (u32 j = 0; j < width; j++) {
          const u32 at = column + mine(j);
          if (at >= begin && at < end) add(a, j, load_shared(right + swizzled<DEPTH / elements>(at, k)));
        }
      } else {
#pragma unroll
        for (u32 e = 0; e < elements; e++) {
#pragma unroll
          for (u32 j = 0; j < width; j += elements) {
            const u32 at = column + mine(j);
            if (at < begin || at >= end) continue;
            add_across(a, e, j, load_shared(right + swizzled<WIDTH / elements>(k * elements + e, at / elements)));
          }
        }
      }
    }
  }

  /// multiply_within where a lane owns single columns of an MN-major right operand: value by value.
  template <u32 DEPTH, u32 WIDTH>
  GPU_DEVICE void multiply_values(const Chunk* left, u32 row, const Chunk* right, u32 column, u32 depth, u32 begin,
                                  u32 end) {
#pragma unroll 1
    for (u32 k = 0; k < depth; k++) {
      float a[height];
#pragma unroll
      for (u32 i = 0; i < height; i++) {
        const u32 left_row = row + lane_id() / 4 + 8 * i;
        a[i] = element(left + swizzled<DEPTH / elements>(left_row, k / elements), k % elements);
      }
#pragma unroll
      for (u32 j = 0; j < width; j++) {
        const u32 at = column + mine(j);
        if (at < begin || at >= end) continue;
        const float b = element(right + swizzled<WIDTH / elements>(k, at / elements), at % elements);
#pragma unroll
        for (u32 i = 0; i < height; i++) {
          float& sum = d[(i * width + j) / 4][(i * width + j) % 4];
          sum = gpu::fma(a[i], b, sum);
        }
      }
    }
  }

  /// The j-th column of this lane.
  static GPU_DEVICE u32 mine(u32 j) {
    if constexpr (WEIGHT == Major::K) {
      return lane_id() % 4 + 4 * j;
    } else {
      return (lane_id() % 4 + j / elements * 4) * elements + j % elements;
    }
  }

  template <u32 DEPTH>
  static GPU_DEVICE void load_left(Chunk (&a)[height], const Chunk* tile, u32 row, u32 k) {
#pragma unroll
    for (u32 i = 0; i < height; i++) {
      a[i] = load_shared(tile + swizzled<DEPTH / elements>(row + lane_id() / 4 + 8 * i, k));
    }
  }

  /// Adds the products of column j over one chunk of K.
  GPU_DEVICE void add(const Chunk (&a)[height], u32 j, Chunk chunk) {
    float b[elements];
    unpack<E>(chunk, b);
#pragma unroll
    for (u32 i = 0; i < height; i++) {
      float value[elements];
      unpack<E>(a[i], value);
      float& sum = d[(i * width + j) / 4][(i * width + j) % 4];
#pragma unroll
      for (u32 e = 0; e < elements; e++) sum = gpu::fma(value[e], b[e], sum);
    }
  }

  /// Element i of a chunk in shared memory.
  static GPU_DEVICE float element(const Chunk* chunk, u32 i) {
    if constexpr (same_type<E, float>) {
      return from_bits(chunk->word[i]);
    } else {
      float low, high;
      unpack<E>(chunk->word[i / 2], low, high);
      return i % 2 == 0 ? low : high;
    }
  }

  /// Adds the products of a chunk of columns from j on with value e of a chunk of K.
  GPU_DEVICE void add_across(const Chunk (&a)[height], u32 e, u32 j, Chunk chunk) {
    float b[elements];
    unpack<E>(chunk, b);
#pragma unroll
    for (u32 i = 0; i < height; i++) {
      float value[elements];
      unpack<E>(a[i], value);
#pragma unroll
      for (u32 c = 0; c < elements; c++) {
        float& sum = d[(i * width + j + c) / 4][(i * width + j + c) % 4];
        sum = gpu::fma(value[e], b[c], sum);
      }
    }
  }
};

struct CudaCores {
  template <class E, u32 ROWS, u32 COLUMNS, Major WEIGHT>
  using Sums = ThreadTile<E, ROWS, COLUMNS, WEIGHT>;
};

}  // namespace tile
