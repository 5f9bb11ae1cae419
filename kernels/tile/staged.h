// Tiles of 16-byte chunks in shared memory, and the copies from global memory into them.
//
// Rows are swizzled, so that the chunks of one column in 8 neighbouring rows are in different banks, and so are 8
// neighbouring chunks of one row: ldmatrix and the copies have no bank conflicts.
#pragma once

#include <gpu/copy_async.h>
#include <gpu/shared.h>
#include <tile/elements.h>

namespace tile {

using namespace gpu;

/// The place of chunk `chunk` of row `row` in a tile with CHUNKS chunks per row: 4, or a multiple of 8.
template <u32 CHUNKS>
GPU_DEVICE u32 swizzled(u32 row, u32 chunk) {
  static_assert(CHUNKS == 4 || CHUNKS % 8 == 0, "rows of 64 bytes, or of whole 128");
  if constexpr (CHUNKS == 4) {
    return row * 4 + (chunk ^ (row / 2 % 4));  // two rows share the 32 banks
  } else {
    return row * CHUNKS + (chunk ^ (row % 8));
  }
}

/// Copies 16 bytes from element `first` of a row; elements from `end` on become zeros, and so does everything if `row` is
/// null. `anywhere` is any valid address, for copies that read nothing. ALIGNED copies by cp.async; otherwise the copy is
/// complete on return.
template <class E, bool ALIGNED>
GPU_DEVICE void stage_chunk(Chunk* place, const E* row, u32 first, u32 end, const void* anywhere) {
  const bool present = row != nullptr && first < end;
  if constexpr (ALIGNED) {
    copy_async_16(shared_address(place), present ? row + first : anywhere, present ? 16 : 0);
  } else {
    store_shared(place, load_chunk<E, false, Source::input>(row, first, present ? end : 0));
  }
}

/// A thread's share of the copies of a K-major operand, into tiles of ROWS × DEPTH elements.
template <class E, u32 ROWS, u32 DEPTH, u32 THREADS, bool ALIGNED>
class DepthRows {
 public:
  static constexpr u32 chunks = DEPTH / chunk_elements<E>, count = ROWS * chunks / THREADS;
  static_assert(ROWS * chunks % THREADS == 0, "every thread copies as many chunks");

  /// `row_of(i)` is row i of the tile, or null for zeros.
  template <class F>
  GPU_DEVICE explicit DepthRows(F&& row_of) {
#pragma unroll
    for (u32 i = 0; i < count; i++) rows[i] = row_of(first_row() + i * (THREADS / chunks));
  }

  GPU_DEVICE void stage(Chunk* tile, u32 k, u32 end, const void* anywhere) const {
    const u32 chunk = threadIdx.x % chunks;
#pragma unroll
    for (u32 i = 0; i < count; i++) {
      Chunk* place = tile + swizzled<chunks>(first_row() + i * (THREADS / chunks), chunk);
      stage_chunk<E, ALIGNED>(place, rows[i], k + chunk * chunk_elements<E>, end, anywhere);
    }
  }

 private:
  static GPU_DEVICE u32 first_row() { return threadIdx.x / chunks; }

  const E* rows[count];
};

/// The same for an MN-major operand, whose rows run across K, into tiles of DEPTH × COLUMNS.
template <class E, u32 COLUMNS, u32 DEPTH, u32 THREADS, bool ALIGNED>
class DepthColumns {
 public:
  static constexpr u32 chunks = COLUMNS / chunk_elements<E>, count = DEPTH * chunks / THREADS;
  static_assert(DEPTH * chunks % THREADS == 0, "every thread copies as many chunks");

  /// `base` is element [0, 0] of the whole operand, which has `columns` columns; `column` is the tile's first.
  GPU_DEVICE DepthColumns(const E* base, u32 stride, u32 column, u32 columns)
      : base(base), stride(stride), first(column + threadIdx.x % chunks * chunk_elements<E>), columns(columns) {}

  GPU_DEVICE void stage(Chunk* tile, u32 k, u32 end, const void* anywhere) const {
#pragma unroll
    for (u32 i = 0; i < count; i++) {
      const u32 row = threadIdx.x / chunks + i * (THREADS / chunks);
      const E* source = k + row < end ? base + u64(k + row) * stride : nullptr;
      stage_chunk<E, ALIGNED>(tile + swizzled<chunks>(row, threadIdx.x % chunks), source, first, columns, anywhere);
    }
  }

 private:
  const E* base;
  u32 stride, first, columns;
};

}  // namespace tile
