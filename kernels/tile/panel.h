// Copies neighbouring columns of a row-major matrix into tiles of DEPTH × COLUMNS in shared memory, DEPTH rows at a time.
//
// A thread always copies the same chunk of columns, so it tests only once which of these columns exist and how they can be
// copied: 16 bytes at a time, 4 bytes at a time, or element by element. A rank of 4 in bf16 (rows of 8 bytes) still goes by
// cp.async, 4 bytes at a time. So one kernel takes rows that start and end anywhere, and this costs nothing where they start
// at multiples of 16 bytes.
#pragma once

#include <gpu/copy_async.h>
#include <gpu/math.h>
#include <gpu/shared.h>
#include <tile/elements.h>
#include <tile/staged.h>

namespace tile {

using namespace gpu;

template <class E, u32 COLUMNS, u32 DEPTH, u32 THREADS>
class PanelColumns {
 public:
  static constexpr u32 elements = chunk_elements<E>, chunks = COLUMNS / elements, count = DEPTH * chunks / THREADS;
  static_assert(THREADS % chunks == 0 && DEPTH * chunks % THREADS == 0, "a thread has one chunk of columns");

  /// This thread's first column, counted from the panel's first.
  static GPU_DEVICE u32 first_column() { return threadIdx.x % chunks * elements; }

  /// `first` is this thread's first element of row 0, or any valid address of the matrix if the thread has none. The first
  /// `present` elements of its chunk exist; the others become zeros.
  GPU_DEVICE PanelColumns(const E* first, u32 stride, u32 present)
      : first(first),
        stride(stride),
        present(present),
        alignment(u32(reinterpret_cast<u64>(first) | u64(stride) * sizeof(E)) % 16) {}

  /// Copies rows `row` to `row` + DEPTH; those from `end` on become zeros. The copies complete like copy_async or, element
  /// by element, at once.
  GPU_DEVICE void stage(Chunk* tile, u32 row, u32 end) const {
    if (alignment == 0) {
      each_row(tile, row, end, [](Chunk* place, const E* from, u32 there) {
        copy_async_16(shared_address(place), from, there * sizeof(E));
      });
    } else if (alignment % 4 == 0) {
      each_row(tile, row, end, [](Chunk* place, const E* from, u32 there) {
        constexpr u32 in_word = 4 / sizeof(E);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
          const u32 before = i * in_word, these = there > before ? gpu::min(there - before, in_word) : 0;
          copy_async_4(shared_address(place->word + i), these != 0 ? from + before : from, these * sizeof(E));
        }
      });
    } else {
      each_row(tile, row, end, [](Chunk* place, const E* from, u32 there) {
        store_shared(place, load_chunk<E, false, Source::input>(from, 0, there));
      });
    }
  }

 private:
  /// Calls copy(place, from, there) for the thread's chunk of each row, of which `there` elements exist.
  template <class F>
  GPU_DEVICE void each_row(Chunk* tile, u32 row, u32 end, F&& copy) const {
#pragma unroll
    for (u32 i = 0; i < count; i++) {
      const u32 in_tile = threadIdx.x / chunks + i * (THREADS / chunks);
      const u32 there = row + in_tile < end ? present : 0;
      const E* from = there != 0 ? first + u64(row + in_tile) * stride : first;
      copy(tile + swizzled<chunks>(in_tile, threadIdx.x % chunks), from, there);
    }
  }

  const E* first;
  u32 stride, present, alignment;
};

}  // namespace tile
