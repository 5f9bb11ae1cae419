// gpu/mbarrier.h within a CTA; copies that complete at barriers are in tma.cu.
//
// targets: sm_90a sm_100 sm_120
#include <gpu/block.h>
#include <gpu/mbarrier.h>
#include <gpu/memory.h>
#include <gpu/shared.h>
#include <gpu/warp.h>
#include <test/test.h>

// The first warp writes, the other two read, over a ring of two stages. n[0]: rounds. out[0]: a sum per reader; out[1]: what
// mbarrier_test returns for both parities of a fresh barrier.
GPU_KERNEL(test_mbarrier_ring, LoraTest, 96, 1) {
  using namespace test;
  constexpr u32 stages = 2;
  SharedMemory shared;
  u64* barriers = shared.take<u64>(2 * stages);
  u32* words = shared.take<u32>(stages * 32);
  const u32 full = shared_address(barriers), empty = shared_address(barriers + stages);
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < stages; i++) {
      mbarrier_init(full + 8 * i, 32);
      mbarrier_init(empty + 8 * i, 64);
    }
    store(out<u32>(params, 1) + 0, u32{mbarrier_test(full, 0)});
    store(out<u32>(params, 1) + 1, u32{mbarrier_test(full, 1)});
  }
  sync_block();
  u32 sum = 0;
  for (u32 i = 0; i < params.n[0]; i++) {
    const u32 stage = i % stages, phase = i / stages % 2;
    u32* word = words + stage * 32;
    if (warp_id() == 0) {
      mbarrier_wait(empty + 8 * stage, phase ^ 1);
      word[lane_id()] = 100 * i + lane_id();
      mbarrier_arrive(full + 8 * stage);
    } else {
      mbarrier_wait(full + 8 * stage, phase);
      sum = 3 * sum + word[31 - lane_id()];
      mbarrier_arrive(empty + 8 * stage);
    }
  }
  if (warp_id() != 0) store(out<u32>(params, 0) + threadIdx.x - 32, sum);
}

// Thread 0 polls until the others have arrived; then the barrier's memory holds a word, then a barrier again. out[0]: a word
// per thread.
GPU_KERNEL(test_mbarrier_again, LoraTest, 64, 1) {
  using namespace test;
  SharedMemory shared;
  u64* place = shared.take<u64>(1);
  u32* words = shared.take<u32>(64);
  const u32 barrier = shared_address(place);
  u32 sum = 0;
  for (u32 round = 0; round < 3; round++) {
    if (threadIdx.x == 0) mbarrier_init(barrier, 63);
    sync_block();
    if (threadIdx.x == 0) {
      while (!mbarrier_test(barrier, 0)) {
      }
      for (u32 i = 1; i < 64; i++) sum += words[i];
      mbarrier_invalidate(barrier);
      *place = sum;
    } else {
      words[threadIdx.x] = threadIdx.x * (round + 1);
      mbarrier_arrive(barrier);
    }
    sync_block();
    if (threadIdx.x != 0) sum += static_cast<u32>(*place);
    sync_block();
  }
  store(out<u32>(params, 0) + threadIdx.x, sum);
}
