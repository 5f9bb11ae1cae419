// gpu/tma.h, and the completion of its copies at the barriers of gpu/mbarrier.h.
//
// targets: sm_90a sm_100 sm_120
#include <gpu/atomic.h>
#include <gpu/block.h>
#include <gpu/mbarrier.h>
#include <gpu/memory.h>
#include <gpu/shared.h>
#include <gpu/tma.h>
#include <gpu/warp.h>
#include <test/test.h>

namespace test {

GPU_DEVICE i32 coordinate(const LoraTest& p, u32 i) { return static_cast<i32>(p.n[2 + i]); }

}  // namespace test

// The box of maps[0] at n[2], n[3], n[4], whose n[1] bytes go to out[0] as they lie in shared memory. n[0]: dimensions.
GPU_KERNEL(test_tma_load, LoraTest, 32, 1) {
  using namespace test;
  const u32 bytes = params.n[1];
  SharedMemory shared;
  u32* box = shared.take<u32, 1024>(bytes / 4);
  u64* place = shared.take<u64>(1);
  const u32 barrier = shared_address(place);
  if (threadIdx.x == 0) {
    tma_prefetch(&params.maps[0]);
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
  }
  sync_block();
  if (threadIdx.x == 0) {
    const i32 x = coordinate(params, 0), y = coordinate(params, 1), z = coordinate(params, 2);
    if (params.n[0] == 2) {
      mbarrier_arrive_expect(barrier, bytes);
      tma_load_2d_constant(shared_address(box), &params.maps[0], barrier, x, y);
    } else {
      mbarrier_expect(barrier, bytes);
      tma_load_3d(shared_address(box), &params.maps[0], barrier, x, y, z);
      mbarrier_arrive(barrier);
    }
  }
  mbarrier_wait(barrier, 0);
  for (u32 i = threadIdx.x; i < bytes / 4; i += 32) store(out<u32>(params, 0) + i, box[i]);
}

// in[0]: two boxes of n[1] bytes. The first goes to n[2], n[3], n[4], the second to n[5], n[6], n[7] of maps[0], from the
// same shared memory. n[0]: dimensions. out[0]: the first n[8] words of out[1], the tensor, as this CTA sees them
// afterwards.
GPU_KERNEL(test_tma_store, LoraTest, 32, 1) {
  using namespace test;
  const u32 words = params.n[1] / 4;
  SharedMemory shared;
  u32* box = shared.take<u32, 1024>(words);
  for (u32 round = 0; round < 2; round++) {
    for (u32 i = threadIdx.x; i < words; i += 32) box[i] = load(in<u32>(params, 0) + round * words + i);
    fence_proxy_async_shared();
    sync_block();
    if (threadIdx.x == 0) {
      const i32 x = coordinate(params, 3 * round), y = coordinate(params, 3 * round + 1);
      if (params.n[0] == 2) {
        tma_store_2d(&params.maps[0], shared_address(box), x, y);
      } else {
        tma_store_3d(&params.maps[0], shared_address(box), x, y, coordinate(params, 3 * round + 2));
      }
      bulk_commit();
      bulk_wait_read<0>();
    }
    sync_block();
  }
  if (threadIdx.x == 0) bulk_wait<0>();
  sync_block();
  for (u32 i = threadIdx.x; i < params.n[8]; i += 32) {
    store(out<u32>(params, 0) + i, load(static_cast<const u32*>(params.out[1]) + i));
  }
}

// Boxes of 8 rows of 128 bytes, swizzled, over a ring: one thread of the first warp issues the copies, the second warp sums
// the boxes, and the third changes each box and stores it to maps[1]. n[0]: boxes. out[0]: 4 words of each lane of the
// second warp.
GPU_KERNEL(test_tma_ring, LoraTest, 96, 1) {
  using namespace test;
  constexpr u32 stages = 3, box_bytes = 1024;
  SharedMemory shared;
  Chunk* boxes = shared.take<Chunk, 1024>(stages * 64);
  Chunk* changed = shared.take<Chunk, 1024>(2 * 64);
  u64* barriers = shared.take<u64>(2 * stages);
  const u32 full = shared_address(barriers), empty = shared_address(barriers + stages);
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < stages; i++) {
      mbarrier_init(full + 8 * i, 1);
      mbarrier_init(empty + 8 * i, 64);
    }
    fence_mbarrier_init();
  }
  sync_block();
  const u32 rounds = params.n[0], lane = lane_id();
  if (warp_id() == 0) {
    if (!elect_one()) return;
    for (u32 i = 0; i < rounds; i++) {
      const u32 stage = i % stages;
      mbarrier_wait(empty + 8 * stage, i / stages % 2 ^ 1);
      mbarrier_arrive_expect(full + 8 * stage, box_bytes);
      tma_load_2d(shared_address(boxes + stage * 64), &params.maps[0], full + 8 * stage, 0, static_cast<i32>(8 * i));
    }
    return;
  }
  Chunk sum = {};
  for (u32 i = 0; i < rounds; i++) {
    const u32 stage = i % stages;
    Chunk* target = changed + i % 2 * 64;
    if (warp_id() == 2) {
      if (lane == 31) bulk_wait_read<1>();
      sync_warp();
    }
    mbarrier_wait(full + 8 * stage, i / stages % 2);
    for (u32 c = lane; c < 64; c += 32) {
      Chunk chunk = load_shared(boxes + stage * 64 + c);
      if (warp_id() == 1) {
        for (u32 w = 0; w < 4; w++) sum.word[w] += chunk.word[w] * (i + 1);
      } else {
        for (u32 w = 0; w < 4; w++) chunk.word[w] += i;
        store_shared(target + c, chunk);
      }
    }
    mbarrier_arrive(empty + 8 * stage);
    if (warp_id() == 2) {
      fence_proxy_async_shared();
      sync_warp();
      if (lane == 31) {
        tma_store_2d(&params.maps[1], shared_address(target), 0, static_cast<i32>(8 * i));
        bulk_commit();
      }
    }
  }
  if (warp_id() == 1) store(out<Chunk>(params, 0) + lane, sum);
  if (warp_id() == 2 && lane == 31) bulk_wait_read<0>();
}

// The CTA with the first ticket writes 8 rows of 128 bytes of the tensor at out[1]; the others fetch them by TMA once the
// flag is set. out[0]: ticket, flag. out[2]: what each of the others got.
GPU_KERNEL(test_tma_other_cta, LoraTest, 32, 1) {
  using namespace test;
  SharedMemory shared;
  Chunk* box = shared.take<Chunk, 1024>(64);
  u64* place = shared.take<u64>(1);
  u32* ticket = shared.take<u32>(1);
  const u32 barrier = shared_address(place);
  u32* counter = out<u32>(params, 0);
  if (threadIdx.x == 0) {
    *ticket = fetch_add_relaxed(counter, u32{1});
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
  }
  sync_block();
  if (*ticket == 0) {
    for (u32 i = threadIdx.x; i < 64; i += 32) store(out<Chunk>(params, 1) + i, load(in<Chunk>(params, 0) + i));
    sync_block();
    if (threadIdx.x == 0) store_release(counter + 1, u32{1});
    return;
  }
  if (threadIdx.x == 0) {
    while (load_acquire(counter + 1) == 0) back_off();
    fence_proxy_async_global();
    mbarrier_arrive_expect(barrier, 1024);
    tma_load_2d(shared_address(box), &params.maps[0], barrier, 0, 0);
  }
  mbarrier_wait(barrier, 0);
  for (u32 i = threadIdx.x; i < 64; i += 32) {
    store(out<Chunk>(params, 2) + (*ticket - 1) * 64 + i, load_shared(box + i));
  }
}
