// Clusters: CTAs that run at the same time on neighbouring SMs and can access each other's shared memory (sm_90 and later).
#pragma once

#include <gpu/types.h>

#if GPU_TARGET >= 900

namespace gpu {

/// This CTA's number within its cluster.
GPU_DEVICE u32 cluster_rank() {
  u32 rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

GPU_DEVICE u32 cluster_size() {
  u32 size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

/// Arrives at the cluster's barrier. Every thread of the cluster must arrive, whole warps together, and then wait.
GPU_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }

GPU_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

GPU_DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

/// The cluster address of `shared_addr` in the CTA of that rank.
GPU_DEVICE u32 map_shared(u32 shared_addr, u32 rank) {
  u32 address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_addr), "r"(rank));
  return address;
}

/// T: u32 or float. The other CTA must have started, which a barrier has to ensure, and must not exit before the access.
template <class T>
GPU_DEVICE T load_cluster(u32 address) {
  static_assert(sizeof(T) == 4, "u32 or float");
  u32 value;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return __builtin_bit_cast(T, value);
}

/// The same for 16 bytes at a multiple of 16.
GPU_DEVICE Chunk load_cluster_chunk(u32 address) {
  Chunk chunk;
  asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(chunk.word[0]), "=r"(chunk.word[1]), "=r"(chunk.word[2]), "=r"(chunk.word[3])
               : "r"(address)
               : "memory");
  return chunk;
}

template <class T>
GPU_DEVICE void store_cluster(u32 address, T value) {
  static_assert(sizeof(T) == 4, "u32 or float");
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(__builtin_bit_cast(u32, value)) : "memory");
}

}  // namespace gpu

#endif
