// Loads of 16 bytes of a row, from memory that may or may not be aligned to 16 bytes.
#pragma once

#include <gpu/convert.h>
#include <gpu/memory.h>

namespace tile {

using namespace gpu;

constexpr Chunk zero_chunk = {{0, 0, 0, 0}};

/// Whether rows that start at `base`, `stride` elements apart, can be read 16 bytes at a time.
template <class E>
GPU_DEVICE bool rows_are_aligned(const void* base, u32 stride) {
  return (reinterpret_cast<u64>(base) | u64(stride) * sizeof(E)) % sizeof(Chunk) == 0;
}

/// Loads elements `first` to `first + chunk_elements<E>` of a row as f32; those from `end` on are zeros. ALIGNED requires
/// that the row is aligned and that `end` is a multiple of a chunk.
template <class E, bool ALIGNED>
GPU_DEVICE void load_elements(const E* row, u32 first, u32 end, float (&out)[chunk_elements<E>]) {
  if constexpr (ALIGNED) {
    Chunk chunk = zero_chunk;
    if (first < end) chunk = load_constant(reinterpret_cast<const Chunk*>(row + first));
    unpack<E>(chunk, out);
  } else {
#pragma unroll
    for (u32 i = 0; i < chunk_elements<E>; i++) out[i] = first + i < end ? to_f32(load_constant(row + first + i)) : 0.0f;
  }
}

/// The same, where alignment is known only at run time.
template <class E>
GPU_DEVICE void load_elements(const E* row, u32 first, u32 end, bool aligned, float (&out)[chunk_elements<E>]) {
  if (aligned && first + chunk_elements<E> <= end) {
    load_elements<E, true>(row, first, end, out);
  } else {
    load_elements<E, false>(row, first, end, out);
  }
}

/// Loads elements of a weight, which is read only once, without converting them.
template <class E, bool ALIGNED>
GPU_DEVICE Chunk load_weight(const E* row, u32 first, u32 end) {
  Chunk chunk = zero_chunk;
  if constexpr (ALIGNED) {
    if (first < end) chunk = load_once(reinterpret_cast<const Chunk*>(row + first));
  } else {
#pragma unroll
    for (u32 i = 0; i < chunk_elements<E>; i++) {
      if (first + i >= end) continue;
      if constexpr (same_type<E, float>) {
        chunk.word[i] = bits(load_constant(row + first + i));
      } else {
        chunk.word[i / 2] |= u32(load_constant(row + first + i).bits) << i % 2 * 16;
      }
    }
  }
  return chunk;
}

}  // namespace tile
