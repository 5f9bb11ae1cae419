// Operands of wgmma in shared memory: rows of 128 bytes with the 128-byte swizzle, 64 values per row.
//
// K-major: a row is 64 values of k of one m or n. MN-major: a row is 64 values of m or n of one k; wider operands are panels
// of 64, one after the other.
#pragma once

#include <gpu/memory.h>
#include <gpu/shared.h>
#include <gpu/tma.h>
#include <gpu/wgmma.h>
#include <test/test.h>

namespace test {

constexpr u32 tile_depth = 64, row_chunks = 8, row_bytes = 128, pattern_bytes = 1024;

/// An operand of `WIDTH` values of m or n by 64 of k, of 16 bits each.
template <u32 WIDTH, Major MAJOR>
struct Operand {
  static constexpr bool is_k_major = MAJOR == Major::K;
  static constexpr u32 panels = is_k_major ? 1 : (WIDTH + 63) / 64;
  static constexpr u32 rows = is_k_major ? WIDTH : tile_depth;
  static constexpr u32 bytes = panels * rows * row_bytes;

  Chunk* tile;

  /// Called by all threads of the CTA: fills the operand from a matrix of WIDTH × 64 or 64 × WIDTH packed values.
  GPU_DEVICE void fill(const Chunk* source) const {
    constexpr u32 width = is_k_major ? tile_depth : WIDTH, chunks = width / 8;
    for (u32 i = threadIdx.x; i < rows * chunks; i += blockDim.x) {
      const u32 row = i / chunks, chunk = i % chunks;
      const u32 in_panel = row * row_chunks + ((chunk % row_chunks) ^ (row % 8));
      store_shared(tile + chunk / row_chunks * rows * row_chunks + in_panel, load(source + i));
    }
  }

  /// Called by one thread: the same by TMA, boxes of 64 × `rows` from column `x` and row `y` of a matrix on.
  GPU_DEVICE void fetch(const TensorMap* map, u32 barrier, u32 x, u32 y) const {
    for (u32 panel = 0; panel < panels; panel++) {
      tma_load_2d(shared_address(tile + panel * rows * row_chunks), map, barrier, static_cast<i32>(x + 64 * panel),
                  static_cast<i32>(y));
    }
  }

  /// The descriptor of the 16 values of k from 16·step on.
  GPU_DEVICE u64 descriptor(u32 step) const {
    const u64 first = wgmma_descriptor(shared_address(tile), is_k_major ? 0 : rows * row_bytes, pattern_bytes);
    // In units of 16 bytes: 32 bytes along a row, or two groups of eight rows.
    return first + step * (is_k_major ? 32 / 16 : 2 * pattern_bytes / 16);
  }
};

}  // namespace test
