// A box of a tensor map: which bytes of global memory it covers, and where they lie in shared memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tensor_map.h"

namespace emu {

/// The 128-byte swizzle: bits 4 to 6 of an address are XORed with bits 7 to 9.
inline char* swizzled(char* p) {
  uintptr_t at = reinterpret_cast<uintptr_t>(p);
  return reinterpret_cast<char*>(at ^ (at >> 3 & 0x70));
}

struct Box {
  static constexpr size_t chunk_bytes = 16;

  TensorMap map{};
  int64_t start[3] = {};

  Box() = default;
  Box(const TensorMap& tensor, const int32_t* at) : map(tensor) { std::copy(at, at + map.rank, start); }

  /// Calls f(address, bytes, offset in the packed box) for the part of each row of the box that is inside the tensor.
  template <class F>
  void for_each_row(F&& f) const {
    const int64_t first = std::max<int64_t>(start[0], 0);
    const int64_t end = std::min<int64_t>(start[0] + map.box[0], static_cast<int64_t>(map.dimension(0)));
    if (first >= end) return;
    const int64_t depth = map.rank > 2 ? map.box[2] : 1, height = map.rank > 1 ? map.box[1] : 1;
    for (int64_t k = 0; k < depth; k++) {
      for (int64_t j = 0; j < height; j++) {
        const int64_t y = start[1] + j, z = start[2] + k;
        if (y < 0 || z < 0 || (map.rank > 1 && y >= static_cast<int64_t>(map.dimension(1))) ||
            (map.rank > 2 && z >= static_cast<int64_t>(map.dimension(2)))) {
          continue;
        }
        const uint64_t address = map.address + static_cast<uint64_t>(z) * map.stride[1] +
                                 static_cast<uint64_t>(y) * map.stride[0] + static_cast<uint64_t>(first) * map.element_bytes;
        const size_t packed = static_cast<size_t>(k * height + j) * map.row_bytes() +
                              static_cast<size_t>(first - start[0]) * map.element_bytes;
        f(reinterpret_cast<char*>(address), static_cast<size_t>(end - first) * map.element_bytes, packed);
      }
    }
  }

  /// Calls f(address, offset in the packed box) for each 16 bytes of a box that lies at `shared` in shared memory.
  template <class F>
  void for_each_chunk(char* shared, F&& f) const {
    for (size_t at = 0; at < map.box_bytes(); at += chunk_bytes) {
      char* chunk = shared + at;
      f(map.swizzle ? swizzled(chunk) : chunk, at);
    }
  }

  /// The packed box, zero outside the tensor.
  void gather_global(char* to) const {
    memset(to, 0, map.box_bytes());
    for_each_row([&](const char* row, size_t bytes, size_t at) { memcpy(to + at, row, bytes); });
  }
};

}  // namespace emu
