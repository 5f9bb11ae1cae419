// gpu/tma.h: one fetch for several CTAs.
//
// targets: sm_90a
#include <gpu/block.h>
#include <gpu/cluster.h>
#include <gpu/mbarrier.h>
#include <gpu/memory.h>
#include <gpu/shared.h>
#include <gpu/tma.h>
#include <gpu/warp.h>
#include <test/test.h>

// The two CTAs of a cluster sum the same boxes of 16 rows of 128 bytes; each CTA fetches one half of a box for both. A stage
// is filled again when the consumers of both CTAs have arrived at the barriers of both. n[0]: boxes. out[0]: four sums per
// consumer thread.
GPU_KERNEL(test_multicast_ring, LoraTest, 64, 1) {
  using namespace test;
  constexpr u32 stages = 2, half_chunks = 64, half_bytes = 1024;
  SharedMemory shared;
  Chunk* boxes = shared.take<Chunk, 1024>(stages * 2 * half_chunks);
  u64* barriers = shared.take<u64>(2 * stages);
  const u32 full = shared_address(barriers), empty = shared_address(barriers + stages);
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < stages; i++) {
      mbarrier_init(full + 8 * i, 1);
      mbarrier_init(empty + 8 * i, 2 * 32);
    }
    fence_mbarrier_init();
  }
  cluster_sync();
  const u32 rank = cluster_rank(), rounds = params.n[0];
  if (warp_id() == 0) {
    if (elect_one()) {
      for (u32 i = 0; i < rounds; i++) {
        const u32 stage = i % stages;
        mbarrier_wait_cluster(empty + 8 * stage, i / stages % 2 ^ 1);
        mbarrier_arrive_expect(full + 8 * stage, 2 * half_bytes);
        const u32 to = shared_address(boxes + (2 * stage + rank) * half_chunks);
        tma_load_2d_multicast(to, &params.maps[0], full + 8 * stage, 0, static_cast<i32>(16 * i + 8 * rank), 3);
      }
    }
    sync_warp();
  } else {
    Chunk sum = {};
    for (u32 i = 0; i < rounds; i++) {
      const u32 stage = i % stages;
      mbarrier_wait(full + 8 * stage, i / stages % 2);
      for (u32 c = lane_id(); c < 2 * half_chunks; c += 32) {
        const Chunk chunk = load_shared(boxes + 2 * stage * half_chunks + c);
        for (u32 w = 0; w < 4; w++) sum.word[w] += chunk.word[w] * (i + 1 + c / half_chunks);
      }
      for (u32 other = 0; other < 2; other++) mbarrier_arrive_cluster(map_shared(empty + 8 * stage, other));
    }
    store(out<Chunk>(params, 0) + blockIdx.x * 32 + lane_id(), sum);
  }
  cluster_sync();
}
