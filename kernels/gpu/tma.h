// TMA: copies of boxes of a tensor between global and shared memory by the copy engine (sm_90 and later).
//
// One thread issues a copy. A load completes at an mbarrier, always with the bytes of the whole box; the part outside the
// tensor is zero. A store clips the box, and completes in the bulk groups of the issuing thread. The copy engine works
// through the async proxy: a proxy fence must come between plain writes and the engine's reads of them.
#pragma once

#include <gpu/types.h>

/// The driver's CUtensorMap, a member of a kernel's parameters (kernels/abi.h).
struct TensorMap;

#if GPU_TARGET >= 900

namespace gpu {

// The destination is the CTA's own shared memory, which sm_90 can only address as a part of the cluster's. Where it can be
// named as the CTA's, the compiler needs no check that it is.
#if GPU_TARGET >= 1000
#define GPU_DESTINATION ".shared::cta"
#else
#define GPU_DESTINATION ".shared::cluster"
#endif

/// Fetches the descriptor itself, so that the first copy does not wait for it.
GPU_DEVICE void tma_prefetch(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

/// Copies the box at column x of row y to shared memory at `dst` (128-byte aligned, 1024 with the 128-byte swizzle).
GPU_DEVICE void tma_load_2d(u32 dst, const TensorMap* map, u32 bar, i32 x, i32 y) {
  asm volatile(
      "cp.async.bulk.tensor.2d" GPU_DESTINATION ".global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(dst),
      "l"(map), "r"(bar), "r"(x), "r"(y)
      : "memory");
}

/// The same for a tensor that no kernel writes, such as a weight: it may be fetched before the wait for the launch ahead.
GPU_DEVICE void tma_load_2d_constant(u32 dst, const TensorMap* map, u32 bar, i32 x, i32 y) {
  tma_load_2d(dst, map, bar, x, y);
}

GPU_DEVICE void tma_load_3d(u32 dst, const TensorMap* map, u32 bar, i32 x, i32 y, i32 z) {
  asm volatile(
      "cp.async.bulk.tensor.3d" GPU_DESTINATION ".global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(dst),
      "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z)
      : "memory");
}

#undef GPU_DESTINATION

#if GPU_TARGET_IS_90A
/// Copies the box to the same offset in every CTA whose rank has its bit in `cta_mask`; the copy completes at each CTA's own
/// barrier.
GPU_DEVICE void tma_load_2d_multicast(u32 dst, const TensorMap* map, u32 bar, i32 x, i32 y, u16 cta_mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%4, %5}], [%2], %3;" ::"r"(dst),
      "l"(map), "r"(bar), "h"(cta_mask), "r"(x), "r"(y)
      : "memory");
}
#endif

/// Copies a box of shared memory at `src` to column x of row y; what lies outside the tensor is not written.
GPU_DEVICE void tma_store_2d(const TensorMap* map, u32 src, i32 x, i32 y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(src),
               "r"(x), "r"(y)
               : "memory");
}

GPU_DEVICE void tma_store_3d(const TensorMap* map, u32 src, i32 x, i32 y, i32 z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(src), "r"(x), "r"(y), "r"(z)
               : "memory");
}

/// Closes a group: this thread's stores since the last commit.
GPU_DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

/// Waits until at most the `N` latest groups are incomplete.
template <int N>
GPU_DEVICE void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}

/// Waits until at most the `N` latest groups still read shared memory, which may then be written again.
template <int N>
GPU_DEVICE void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

/// Orders plain accesses of the CTA's shared memory with those of the copy engine and of wgmma.
GPU_DEVICE void fence_proxy_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Orders plain accesses of global memory with those of the copy engine.
GPU_DEVICE void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

}  // namespace gpu

#endif
