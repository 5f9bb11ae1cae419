#include "wgmma_operand.h"

#include <cstring>

#include "box.h"
#include "machine.h"
#include "product.h"

namespace emu {

namespace {

constexpr uint64_t address_bits = 0x3ffff;
constexpr uint64_t unused_bits = 0x3ff1c000c000c000;  // 14–15, 30–31, 46–48, 52–61
constexpr uint32_t pattern_bytes = 1024;  // of the 128-byte swizzle

}  // namespace

uint64_t wgmma_descriptor(uint32_t address, uint32_t leading_bytes, uint32_t stride_bytes) {
  if (address >> 24 != self->cta->rank) {
    fail(Fault::descriptor, "wgmma_descriptor of shared address 0x%x, which is not the CTA's own", address);
  }
  const uint64_t start = address & 0xffffff;
  if (start > address_bits) {
    fail(Fault::resources,
         "wgmma_descriptor: with so many arrays in shared memory, address 0x%llx does not fit into a descriptor",
         static_cast<unsigned long long>(start));
  }
  if (start % 16 || leading_bytes % 16 || stride_bytes % 16 || leading_bytes > address_bits || stride_bytes > address_bits) {
    fail(Fault::descriptor, "wgmma_descriptor: address 0x%x and offsets %u and %u must be multiples of 16 below 2^18", address,
         leading_bytes, stride_bytes);
  }
  return start >> 4 | uint64_t(leading_bytes >> 4) << 16 | uint64_t(stride_bytes >> 4) << 32 | uint64_t(1) << 62;
}

SharedOperand::SharedOperand(uint64_t descriptor, bool mn_major, uint32_t rows, const char* name)
    : base_(self->cta->shared),
      start_(static_cast<uint32_t>(descriptor & 0x3fff) << 4),
      leading_(static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4),
      stride_(static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4),
      rows_(rows),
      mn_major_(mn_major) {
  const auto shown = static_cast<unsigned long long>(descriptor);
  if (descriptor >> 62 != 1 || descriptor & unused_bits || descriptor >> 49 & 7) {
    fail(Fault::descriptor, "%s: descriptor 0x%llx is not for the 128-byte swizzle with base offset 0", name, shown);
  }
  if (start_ & 0x380) fail(Fault::descriptor, "%s: descriptor 0x%llx starts inside a 1024-byte swizzle pattern", name, shown);
  const uint32_t row_bytes = mn_major ? 2 * (rows < 64 ? rows : 64) : 32;
  if (start_ % 128 + row_bytes > 128) {
    fail(Fault::descriptor, "%s: descriptor 0x%llx extends beyond a 128-byte row", name, shown);
  }
  const bool uses_stride = mn_major || rows > 8, uses_leading = mn_major && rows > 64;
  if ((uses_stride && (stride_ == 0 || stride_ % pattern_bytes)) ||
      (uses_leading && (leading_ == 0 || leading_ % pattern_bytes))) {
    fail(Fault::descriptor, "%s: descriptor 0x%llx has leading and stride offsets %u and %u, not multiples of 1024", name,
         shown, leading_, stride_);
  }
}

char* SharedOperand::chunk(uint32_t i) const {
  uint32_t at = start_;
  if (mn_major_) {
    const uint32_t k = i / (rows_ / 8), block = i % (rows_ / 8);
    at += block / 8 * leading_ + block % 8 * chunk_bytes + k / 8 * stride_ + k % 8 * 128;
  } else {
    const uint32_t row = i / 2;
    at += row / 8 * stride_ + row % 8 * 128 + i % 2 * chunk_bytes;
  }
  return swizzled(base_ + at);
}

std::vector<uint16_t> SharedOperand::read() const {
  std::vector<uint16_t> data(chunks() * 8);
  for (uint32_t i = 0; i < chunks(); i++) memcpy(&data[8 * i], chunk(i), chunk_bytes);
  return data;
}

void SharedOperand::widen_to(float* to, uint32_t row_stride, uint32_t k_stride, const std::vector<uint16_t>& data,
                             bool is_bf16) const {
  for (uint32_t i = 0; i < chunks(); i++) {
    for (uint32_t e = 0; e < 8; e++) {
      const uint32_t row = mn_major_ ? i % (rows_ / 8) * 8 + e : i / 2;
      const uint32_t k = mn_major_ ? i / (rows_ / 8) : i % 2 * 8 + e;
      to[row * row_stride + k * k_stride] = widen(data[8 * i + e], is_bf16);
    }
  }
}

}  // namespace emu
