// Host version of kernels/gpu/mbarrier.h.
#pragma once

#include <machine/mbarrier.h>

#include <gpu/types.h>

namespace gpu {

GPU_DEVICE void mbarrier_init(u32 bar, u32 arrivals) { emu::mbarrier_init(bar, arrivals); }
GPU_DEVICE void mbarrier_invalidate(u32 bar) { emu::mbarrier_invalidate(bar); }
GPU_DEVICE void mbarrier_arrive(u32 bar) { emu::mbarrier_arrive(bar, 0, false, "mbarrier_arrive"); }
GPU_DEVICE void mbarrier_arrive_expect(u32 bar, u32 bytes) {
  emu::mbarrier_arrive(bar, bytes, false, "mbarrier_arrive_expect");
}
GPU_DEVICE void mbarrier_expect(u32 bar, u32 bytes) { emu::mbarrier_expect(bar, bytes); }
GPU_DEVICE void mbarrier_arrive_cluster(u32 cluster_bar) {
  emu::mbarrier_arrive(cluster_bar, 0, true, "mbarrier_arrive_cluster");
}
GPU_DEVICE bool mbarrier_test(u32 bar, u32 parity) { return emu::mbarrier_test(bar, parity); }
GPU_DEVICE void mbarrier_wait(u32 bar, u32 parity) { emu::mbarrier_wait(bar, parity, false, "mbarrier_wait"); }
GPU_DEVICE void mbarrier_wait_cluster(u32 bar, u32 parity) {
  emu::mbarrier_wait(bar, parity, true, "mbarrier_wait_cluster");
}
GPU_DEVICE void fence_mbarrier_init() { emu::fence_mbarrier_init(); }

}  // namespace gpu
