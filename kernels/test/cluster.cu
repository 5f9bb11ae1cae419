// gpu/cluster.h, and arrivals at other CTAs' barriers.
//
// targets: sm_90a sm_100 sm_120
#include <gpu/block.h>
#include <gpu/cluster.h>
#include <gpu/mbarrier.h>
#include <gpu/memory.h>
#include <gpu/shared.h>
#include <test/test.h>

// Each CTA reads words of the next, and writes floats of the one after that. out[0]: rank and size of each thread's
// cluster; out[1]: words; out[2]: floats.
GPU_KERNEL(test_cluster_exchange, LoraTest, 64, 1) {
  using namespace test;
  SharedMemory shared;
  u32* words = shared.take<u32>(64);
  float* floats = shared.take<float>(64);
  const u32 rank = cluster_rank(), size = cluster_size(), thread = thread_of_grid();
  words[threadIdx.x] = 7 * thread;
  cluster_sync();
  store(out<u32>(params, 0) + 2 * thread, rank);
  store(out<u32>(params, 0) + 2 * thread + 1, size);
  const u32 next = map_shared(shared_address(words), (rank + 1) % size);
  const u32 word = load_cluster<u32>(next + 4 * (63 - threadIdx.x));
  store(out<u32>(params, 1) + thread, word);
  const u32 after = map_shared(shared_address(floats + threadIdx.x), (rank + 2) % size);
  store_cluster(after, load_cluster<float>(map_shared(shared_address(words + threadIdx.x), rank)));
  cluster_arrive();
  cluster_wait();
  store(out<float>(params, 2) + thread, floats[threadIdx.x]);
  if (threadIdx.x < 16) {
    const Chunk chunk = load_cluster_chunk(next + 16 * (15 - threadIdx.x));
    store(out<Chunk>(params, 3) + blockIdx.x * 16 + threadIdx.x, chunk);
  }
  cluster_sync();
  // The barrier above keeps a CTA from exiting while others may still read its shared memory.
}

// The first CTA of each cluster writes n[0] rounds of words, which the others read; they arrive at its barrier when it may
// write again. out[0]: a sum per thread of the others.
GPU_KERNEL(test_cluster_arrive, LoraTest, 32, 1) {
  using namespace test;
  SharedMemory shared;
  u32* words = shared.take<u32>(32);
  u64* place = shared.take<u64>(1);
  const u32 barrier = shared_address(place);
  const u32 rank = cluster_rank(), size = cluster_size();
  if (threadIdx.x == 0 && rank == 0) {
    mbarrier_init(barrier, 32 * (size - 1));
    fence_mbarrier_init();
  }
  u32 sum = 0;
  for (u32 round = 0; round < params.n[0]; round++) {
    if (rank == 0) {
      if (round != 0) mbarrier_wait_cluster(barrier, (round - 1) % 2);
      words[threadIdx.x] = 10 * round + threadIdx.x;
    }
    cluster_sync();
    if (rank != 0) {
      sum += load_cluster<u32>(map_shared(shared_address(words + 31 - threadIdx.x), 0)) * (round + 1);
      mbarrier_arrive_cluster(map_shared(barrier, 0));
    }
  }
  if (rank == 0) mbarrier_wait_cluster(barrier, (params.n[0] - 1) % 2);
  if (rank != 0) store(out<u32>(params, 0) + thread_of_grid(), sum);
  cluster_sync();
}
