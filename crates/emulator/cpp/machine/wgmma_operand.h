// An operand of wgmma in shared memory, with the 128-byte swizzle: rows of A (or columns of B) with 16 values of k each.
//
// In bytes from the start address, before the swizzle is applied to the whole address:
//   K-major    row r, value k:  r / 8 · stride + r % 8 · 128 + 2 k
//   MN-major   row r, value k:  r / 64 · leading + r % 64 · 2 + k / 8 · stride + k % 8 · 128
#pragma once

#include <cstdint>
#include <vector>

namespace emu {

uint64_t wgmma_descriptor(uint32_t address, uint32_t leading_bytes, uint32_t stride_bytes);

class SharedOperand {
 public:
  static constexpr uint32_t chunk_bytes = 16;

  SharedOperand() = default;
  /// Faults on a descriptor that the hardware would reject, or that is not modelled.
  SharedOperand(uint64_t descriptor, bool mn_major, uint32_t rows, const char* name);

  uint32_t chunks() const { return 2 * rows_; }
  char* chunk(uint32_t i) const;
  /// All chunks as they are now.
  std::vector<uint16_t> read() const;
  /// Stores the value at (row, k) of what `read` returned, as f32, in to[row * row_stride + k * k_stride].
  void widen_to(float* to, uint32_t row_stride, uint32_t k_stride, const std::vector<uint16_t>& data, bool is_bf16) const;

 private:
  char* base_ = nullptr;  // of the CTA's slot
  uint32_t start_ = 0, leading_ = 0, stride_ = 0, rows_ = 0;
  bool mn_major_ = false;
};

}  // namespace emu
