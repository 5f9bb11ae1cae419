// Host version of kernels/gpu/copy_async.h.
#pragma once

#include <machine/copy_async.h>

#include <gpu/types.h>

namespace gpu {

GPU_DEVICE void copy_async_16(u32 shared_dst, const void* src, u32 bytes = 16) {
  emu::copy_async(shared_dst, src, 16, bytes);
}
GPU_DEVICE void copy_async_4(u32 shared_dst, const void* src, u32 bytes = 4) {
  emu::copy_async(shared_dst, src, 4, bytes);
}

GPU_DEVICE void copy_async_commit() { emu::copy_async_commit(); }

template <int N>
GPU_DEVICE void copy_async_wait() {
  static_assert(N >= 0, "N is a number of groups, so not negative");
  emu::copy_async_wait(N);
}

}  // namespace gpu
