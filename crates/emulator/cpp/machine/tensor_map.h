// What the driver's CUtensorMap holds. Its 128 bytes are encoded in the emulator's own way.
#pragma once

#include <cstdint>

namespace emu {

struct alignas(64) TensorMap {
  static constexpr uint32_t max_dimensions = 5;

  uint64_t check;    // checksum of everything below
  uint64_t address;  // of the tensor in global memory
  uint64_t stride[max_dimensions - 1];  // in bytes, of dimensions 1 to 4
  uint32_t last[max_dimensions];        // largest index of each dimension
  uint16_t box[max_dimensions];
  uint8_t rank;
  uint8_t element_bytes;
  uint8_t swizzle;  // as in the driver: 0 for none, 3 for 128 bytes
  uint8_t reserved[41];

  uint64_t checksum() const;
  uint64_t dimension(uint32_t i) const { return uint64_t(last[i]) + 1; }
  uint32_t row_bytes() const { return box[0] * element_bytes; }
  uint32_t box_bytes() const;
};
static_assert(sizeof(TensorMap) == 128, "TensorMap must be as large as CUtensorMap");

/// Returns null, or why cuTensorMapEncodeTiled would refuse.
const char* encode_tensor_map(TensorMap& map, uint32_t element_bytes, uint32_t rank, uint64_t address, const uint64_t* dims,
                              const uint64_t* strides, const uint32_t* box, uint32_t swizzle);

/// The map of a copy of `rank` dimensions, or with 0 of any. Faults unless the map is in the kernel's parameters or in
/// global memory, and was made by encode_tensor_map.
const TensorMap& tensor_map(const void* p, uint32_t rank, const char* name);

}  // namespace emu
