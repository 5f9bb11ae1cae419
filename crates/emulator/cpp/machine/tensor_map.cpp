#include "tensor_map.h"

#include <cstddef>
#include <cstring>

#include "machine.h"

namespace emu {

uint64_t TensorMap::checksum() const {
  const char* bytes = reinterpret_cast<const char*>(this);
  uint64_t sum = 0x7461706d6f736e65;
  for (size_t at = offsetof(TensorMap, address); at < sizeof(TensorMap); at += sizeof sum) {
    uint64_t word;
    memcpy(&word, bytes + at, sizeof word);
    sum = (sum ^ word) * 0x9E3779B97F4A7C15ull;
    sum ^= sum >> 32;
  }
  return sum;
}

uint32_t TensorMap::box_bytes() const {
  uint32_t bytes = element_bytes;
  for (uint32_t i = 0; i < rank; i++) bytes *= box[i];
  return bytes;
}

const char* encode_tensor_map(TensorMap& map, uint32_t element_bytes, uint32_t rank, uint64_t address, const uint64_t* dims,
                              const uint64_t* strides, const uint32_t* box, uint32_t swizzle) {
  constexpr uint64_t max_elements = uint64_t(1) << 32, max_stride = uint64_t(1) << 40;
  if (reinterpret_cast<uintptr_t>(&map) % 64) return "the tensor map is not stored at a multiple of 64 bytes";
  if (element_bytes != 1 && element_bytes != 2 && element_bytes != 4 && element_bytes != 8) {
    return "an element must have 1, 2, 4 or 8 bytes";
  }
  if (rank == 0 || rank > TensorMap::max_dimensions) return "a tensor has 1 to 5 dimensions";
  if (address % 16) return "the tensor's address is not a multiple of 16";
  if (swizzle != 0 && swizzle != 3) return "the emulator supports no swizzle other than 128 bytes";
  map = {};
  for (uint32_t i = 0; i < rank; i++) {
    if (dims[i] == 0 || dims[i] > max_elements) return "a dimension must have 1 to 2^32 elements";
    if (box[i] == 0 || box[i] > 256) return "a box must have 1 to 256 elements in each dimension";
    map.last[i] = static_cast<uint32_t>(dims[i] - 1);
    map.box[i] = static_cast<uint16_t>(box[i]);
  }
  uint64_t extent = dims[0] * element_bytes;
  for (uint32_t i = 0; i + 1 < rank; i++) {
    if (strides[i] % 16) return "a stride is not a multiple of 16 bytes";
    if (strides[i] >= max_stride) return "a stride is 2^40 bytes or more";
    if (strides[i] < extent) return "a stride is smaller than the extent of the dimensions below it";
    if (i > 0 && strides[i] % strides[i - 1]) return "a stride is not a multiple of the stride before it";
    map.stride[i] = strides[i];
    extent = strides[i] * dims[i + 1];
  }
  uint64_t inner = uint64_t(box[0]) * element_bytes;
  if (inner % 16) return "a row of the box is not a multiple of 16 bytes";
  // The driver accepts shorter rows; their layout in shared memory is not modelled.
  if (swizzle == 3 && inner != 128) return "with the 128-byte swizzle a row of the box must have 128 bytes";
  map.address = address;
  map.rank = static_cast<uint8_t>(rank);
  map.element_bytes = static_cast<uint8_t>(element_bytes);
  map.swizzle = static_cast<uint8_t>(swizzle);
  map.check = map.checksum();
  return nullptr;
}

const TensorMap& tensor_map(const void* p, uint32_t rank, const char* name) {
  if (reinterpret_cast<uintptr_t>(p) % 64) {
    fail(Fault::descriptor, "%s: the tensor map at %p is not at a multiple of 64 bytes", name, p);
  }
  const Memory& memory = machine->memory;
  if (!machine->in_params(p, sizeof(TensorMap)) && !(memory.is_global(p) && memory.accessible(p, sizeof(TensorMap)))) {
    fail(Fault::descriptor, "%s: the tensor map is neither a parameter of the kernel nor in global memory", name);
  }
  const auto& map = *static_cast<const TensorMap*>(p);
  if (map.check != map.checksum()) fail(Fault::descriptor, "%s: these 128 bytes are not an encoded tensor map", name);
  if (rank != 0 && map.rank != rank) {
    fail(Fault::descriptor, "%s: the copy has %u dimensions, but the tensor map has %u", name, rank, map.rank);
  }
  return map;
}

}  // namespace emu
