// The CTA's dynamic shared memory. Kernels have no static shared memory: the launch gives the size, and the kernel divides
// it into pieces.
#pragma once

#include <gpu/types.h>

namespace gpu {

/// 1024 bytes is the alignment of a 128-byte swizzled tile, the strictest there is.
extern __shared__ __align__(1024) u8 dynamic_shared[];

/// Hands out dynamic shared memory from its start. Every thread makes the same calls and gets the same addresses.
class SharedMemory {
 public:
  GPU_DEVICE SharedMemory() : used_(0) {}

  /// Space for `count` elements at the next multiple of `ALIGNMENT` bytes.
  template <class T, u32 ALIGNMENT = 16>
  GPU_DEVICE T* take(u32 count) {
    static_assert(ALIGNMENT <= 1024 && (ALIGNMENT & (ALIGNMENT - 1)) == 0, "a power of two up to the base's alignment");
    static_assert(ALIGNMENT % alignof(T) == 0, "an alignment that suits the type");
    const u32 start = (used_ + ALIGNMENT - 1) & ~(ALIGNMENT - 1);
    used_ = start + count * static_cast<u32>(sizeof(T));
    return reinterpret_cast<T*>(dynamic_shared + start);
  }

 private:
  u32 used_;
};

/// The address within the CTA's shared memory, as instructions on shared memory take it.
GPU_DEVICE u32 shared_address(const void* pointer) { return static_cast<u32>(__cvta_generic_to_shared(pointer)); }

}  // namespace gpu
