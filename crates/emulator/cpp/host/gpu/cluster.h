// Host version of kernels/gpu/cluster.h.
#pragma once

#include <machine/cluster.h>

#include <cstring>

#include <gpu/types.h>

namespace gpu {

GPU_DEVICE u32 cluster_rank() { return emu::cluster_rank(); }
GPU_DEVICE u32 cluster_size() { return emu::cluster_size(); }
GPU_DEVICE void cluster_arrive() { emu::cluster_arrive(); }
GPU_DEVICE void cluster_wait() { emu::cluster_wait(); }

GPU_DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

GPU_DEVICE u32 map_shared(u32 shared_addr, u32 rank) { return emu::map_shared(shared_addr, rank); }

template <class T>
GPU_DEVICE T load_cluster(u32 address) {
  static_assert(sizeof(T) == 4, "T must be u32 or float");
  T value;
  emu::load_cluster(address, &value, sizeof value);
  return value;
}

GPU_DEVICE Chunk load_cluster_chunk(u32 address) {
  Chunk chunk;
  emu::load_cluster(address, &chunk, sizeof chunk);
  return chunk;
}

template <class T>
GPU_DEVICE void store_cluster(u32 address, T value) {
  static_assert(sizeof(T) == 4, "T must be u32 or float");
  u32 word;
  memcpy(&word, &value, sizeof word);
  emu::store_cluster(address, word);
}

}  // namespace gpu
