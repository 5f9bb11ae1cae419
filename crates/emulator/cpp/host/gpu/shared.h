// Host version of kernels/gpu/shared.h: each array lies between red zones.
#pragma once

#include <gpu/types.h>

namespace gpu {

class SharedMemory {
 public:
  GPU_DEVICE SharedMemory() { emu::restart_shared(); }

  template <class T, u32 ALIGNMENT = 16>
  GPU_DEVICE T* take(u32 count) {
    return static_cast<T*>(emu::take_shared(count * sizeof(T), ALIGNMENT));
  }
};

GPU_DEVICE u32 shared_address(const void* p) { return emu::shared_window(p); }

}  // namespace gpu
