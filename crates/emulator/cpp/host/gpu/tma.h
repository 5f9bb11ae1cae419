// Host version of kernels/gpu/tma.h.
#pragma once

#include <machine/tma.h>

#include <gpu/types.h>

struct TensorMap;

namespace gpu {

GPU_DEVICE void tma_prefetch(const TensorMap* map) { emu::tma_prefetch(map); }

GPU_DEVICE void tma_load_2d(u32 dst, const TensorMap* map, u32 bar, i32 x, i32 y) {
  const i32 at[] = {x, y};
  emu::tma_load(dst, map, bar, at, 2, 0, "tma_load_2d");
}

GPU_DEVICE void tma_load_2d_constant(u32 dst, const TensorMap* map, u32 bar, i32 x, i32 y) {
  const i32 at[] = {x, y};
  emu::tma_load(dst, map, bar, at, 2, 0, "tma_load_2d_constant", true);
}

GPU_DEVICE void tma_load_3d(u32 dst, const TensorMap* map, u32 bar, i32 x, i32 y, i32 z) {
  const i32 at[] = {x, y, z};
  emu::tma_load(dst, map, bar, at, 3, 0, "tma_load_3d");
}

GPU_DEVICE void tma_load_2d_multicast(u32 dst, const TensorMap* map, u32 bar, i32 x, i32 y, u16 cta_mask) {
  const i32 at[] = {x, y};
  emu::tma_load(dst, map, bar, at, 2, cta_mask, "tma_load_2d_multicast");
}

GPU_DEVICE void tma_store_2d(const TensorMap* map, u32 src, i32 x, i32 y) {
  const i32 at[] = {x, y};
  emu::tma_store(map, src, at, 2, "tma_store_2d");
}

GPU_DEVICE void tma_store_3d(const TensorMap* map, u32 src, i32 x, i32 y, i32 z) {
  const i32 at[] = {x, y, z};
  emu::tma_store(map, src, at, 3, "tma_store_3d");
}

GPU_DEVICE void bulk_commit() { emu::bulk_commit(); }

template <int N>
GPU_DEVICE void bulk_wait() {
  emu::bulk_wait(N, false);
}

template <int N>
GPU_DEVICE void bulk_wait_read() {
  emu::bulk_wait(N, true);
}

GPU_DEVICE void fence_proxy_async_shared() { emu::fence_proxy_async(true); }
GPU_DEVICE void fence_proxy_async_global() { emu::fence_proxy_async(false); }

}  // namespace gpu
