// Barriers in shared memory that count arrivals and bytes of asynchronous copies (sm_90 and later).
//
// A phase completes when no arrivals and no bytes are pending; the next begins at once. `bar` is the shared address of
// the barrier's 8 bytes.
#pragma once

#include <gpu/types.h>

#if GPU_TARGET >= 900

namespace gpu {

/// Every phase expects `arrivals` arrivals. Other threads may use the barrier after `fence_mbarrier_init` and a barrier of
/// the CTA.
GPU_DEVICE void mbarrier_init(u32 bar, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}

/// Must be called before the memory of the barrier is used for anything else.
GPU_DEVICE void mbarrier_invalidate(u32 bar) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

/// One arrival. What this thread did before is visible to the threads of its CTA that wait for the phase.
GPU_DEVICE void mbarrier_arrive(u32 bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

/// Expects `bytes` more in this phase, then arrives.
GPU_DEVICE void mbarrier_arrive_expect(u32 bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

/// Expects `bytes` more in this phase, without an arrival.
GPU_DEVICE void mbarrier_expect(u32 bar, u32 bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

/// One arrival at a barrier of any CTA of the cluster, its address from `map_shared`.
GPU_DEVICE void mbarrier_arrive_cluster(u32 cluster_bar) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(cluster_bar) : "memory");
}

/// Returns whether the phase of that parity has completed; the phase before the first has parity 1. Never waits.
GPU_DEVICE bool mbarrier_test(u32 bar, u32 parity) {
  u32 complete;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(complete)
      : "r"(bar), "r"(parity)
      : "memory");
  return complete != 0;
}

/// Waits until the phase of that parity has completed. After it this thread sees what the phase's copies brought and what
/// threads of this CTA did before they arrived, but not what other CTAs wrote to global memory.
GPU_DEVICE void mbarrier_wait(u32 bar, u32 parity) {
  u32 complete;
  // The instruction waits for a time that the hardware chooses, then returns false.
  do {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(complete)
        : "r"(bar), "r"(parity)
        : "memory");
  } while (complete == 0);
}

/// The same; this thread also sees what threads of other CTAs of the cluster did before they arrived.
GPU_DEVICE void mbarrier_wait_cluster(u32 bar, u32 parity) {
  u32 complete;
  do {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(complete)
        : "r"(bar), "r"(parity)
        : "memory");
  } while (complete == 0);
}

/// Makes initialisations visible to the other CTAs of the cluster and to the copy engine.
GPU_DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

}  // namespace gpu

#endif
