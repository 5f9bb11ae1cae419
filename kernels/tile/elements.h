// Loads of 16 bytes of a row, from memory that may or may not be aligned to 16 bytes.
#pragma once

#include <gpu/convert.h>
#include <gpu/memory.h>

namespace tile {

using namespace gpu;

constexpr Chunk zero_chunk = {{0, 0, 0, 0}};

/// What a row belongs to: an input, which a launch shortly before this one may have written, or a weight, which none has.
enum class Source { input, weight };

/// One element or chunk, by the path that its source allows (gpu/memory.h).
template <Source SOURCE, class T>
GPU_DEVICE T load_from(const T* pointer) {
  if constexpr (SOURCE == Source::input) {
    return load_input(pointer);
  } else {
    return load_constant(pointer);
  }
}

/// Whether rows that start at `base`, `stride` elements apart, can be read 16 bytes at a time.
template <class E>
GPU_DEVICE bool rows_are_aligned(const void* base, u32 stride) {
  return (reinterpret_cast<u64>(base) | u64(stride) * sizeof(E)) % sizeof(Chunk) == 0;
}

/// Loads elements `first` to `first + chunk_elements<E>` of a row as f32; those from `end` on are zeros. ALIGNED requires
/// that the row is aligned and that `end` is a multiple of a chunk.
template <class E, bool ALIGNED, Source SOURCE>
GPU_DEVICE void load_elements(const E* row, u32 first, u32 end, float (&out)[chunk_elements<E>]) {
  if constexpr (ALIGNED) {
    Chunk chunk = zero_chunk;
    if (first < end) chunk = load_from<SOURCE>(reinterpret_cast<const Chunk*>(row + first));
    unpack<E>(chunk, out);
  } else {
#pragma unroll
    for (u32 i = 0; i < chunk_elements<E>; i++) {
      out[i] = first + i < end ? to_f32(load_from<SOURCE>(row + first + i)) : 0.0f;
    }
  }
}

/// The same, where alignment is known only at run time.
template <class E, Source SOURCE>
GPU_DEVICE void load_elements(const E* row, u32 first, u32 end, bool aligned, float (&out)[chunk_elements<E>]) {
  if (aligned && first + chunk_elements<E> <= end) {
    load_elements<E, true, SOURCE>(row, first, end, out);
  } else {
    load_elements<E, false, SOURCE>(row, first, end, out);
  }
}

/// Loads elements `first` to `first + chunk_elements<E>` of a row that is read once, without converting them; those from `end`
/// on are zeros. ALIGNED as above.
template <class E, bool ALIGNED, Source SOURCE>
GPU_DEVICE Chunk load_chunk(const E* row, u32 first, u32 end) {
  Chunk chunk = zero_chunk;
  if constexpr (ALIGNED) {
    const Chunk* place = reinterpret_cast<const Chunk*>(row + first);
    if (first < end) chunk = SOURCE == Source::input ? load_input_once(place) : load_constant_once(place);
  } else {
#pragma unroll
    for (u32 i = 0; i < chunk_elements<E>; i++) {
      if (first + i >= end) continue;
      if constexpr (same_type<E, float>) {
        chunk.word[i] = bits(load_from<SOURCE>(row + first + i));
      } else {
        chunk.word[i / 2] |= u32(load_from<SOURCE>(row + first + i).bits) << i % 2 * 16;
      }
    }
  }
  return chunk;
}

/// load_chunk of a weight.
template <class E, bool ALIGNED>
GPU_DEVICE Chunk load_weight(const E* row, u32 first, u32 end) {
  return load_chunk<E, ALIGNED, Source::weight>(row, first, end);
}

}  // namespace tile
