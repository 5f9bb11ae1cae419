// cp.async, mbarriers and TMA.
#include <gpu/mbarrier.h>
#include <gpu/tma.h>
#include <misuse.h>

MISUSE(copy_longer_than_wide) {
  u32* word = SharedMemory().take<u32>(4);
  if (threadIdx.x == 0) copy_async_16(shared_address(word), words_in(params), 17);
}
MISUSE(copy_from_misaligned) {
  u32* word = SharedMemory().take<u32>(4);
  if (threadIdx.x == 0) copy_async_16(shared_address(word), words_in(params) + 1);
}
MISUSE(copy_to_misaligned) {
  u32* word = SharedMemory().take<u32>(8);
  if (threadIdx.x == 0) copy_async_16(shared_address(word + 1), words_in(params));
}
MISUSE(copy_from_outside) {
  u32* word = SharedMemory().take<u32>(4);
  if (threadIdx.x == 0) copy_async_4(shared_address(word), words_in(params) + 4096);
}
MISUSE(copy_to_outside) {
  u32* word = SharedMemory().take<u32>(4);
  if (threadIdx.x == 0) copy_async_4(shared_address(word) + 16, words_in(params));
}
MISUSE(copy_not_waited_for) {
  u32* word = SharedMemory().take<u32>(4);
  if (threadIdx.x == 0) copy_async_4(shared_address(word), words_in(params));
  copy_async_commit();
}
MISUSE(copy_read_early) {
  Chunk* chunk = SharedMemory().take<Chunk>(1);
  if (threadIdx.x == 0) {
    copy_async_16(shared_address(chunk), words_in(params));
    copy_async_commit();
    load_shared(chunk);
  }
}
MISUSE(copy_read_early_plainly) {
  u32* word = SharedMemory().take<u32>(1);
  if (threadIdx.x == 0) {
    copy_async_4(shared_address(word), words_in(params));
    store(words_out(params), *word);
  }
}
MISUSE(copy_overwritten) {
  volatile u32* word = SharedMemory().take<u32>(1);
  if (threadIdx.x == 0) {
    copy_async_4(shared_address(const_cast<u32*>(word)), words_in(params));
    copy_async_commit();
    *word = 1;
    copy_async_wait<0>();
  }
}
MISUSE(copy_source_changed) {
  u32* word = SharedMemory().take<u32>(1);
  if (threadIdx.x == 0) {
    copy_async_4(shared_address(word), words_in(params));
    copy_async_commit();
    store(words_in(params), 99u);
    copy_async_wait<0>();
  }
}
// The wait orders the copy before the copying thread only; other threads need a barrier after it.
MISUSE(copy_without_barrier) {
  u32* word = SharedMemory().take<u32>(1);
  if (threadIdx.x == 0) {
    copy_async_4(shared_address(word), words_in(params));
    copy_async_commit();
    copy_async_wait<0>();
    store_relaxed(words_out(params) + 1, 1u);
  } else if (threadIdx.x == 32) {
    while (load_relaxed(words_out(params) + 1) != 1) back_off();
    store(words_out(params), *word);
  }
}

namespace {

GPU_DEVICE u32 barrier_of(u32 arrivals, bool fenced) {
  SharedMemory shared;
  const u32 barrier = shared_address(shared.take<u64, 1024>(1));
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, arrivals);
    if (fenced) fence_mbarrier_init();
  }
  sync_block();
  return barrier;
}

// A box in shared memory, after the barrier.
GPU_DEVICE u8* box_of() {
  SharedMemory shared;
  shared.take<u64, 1024>(1);
  return shared.take<u8, 1024>(2048);
}

}  // namespace

MISUSE(mbarrier_uninitialised) { mbarrier_arrive(shared_address(SharedMemory().take<u64>(1))); }
MISUSE(mbarrier_invalidated) {
  const u32 barrier = barrier_of(1, true);
  if (threadIdx.x == 0) {
    mbarrier_invalidate(barrier);
    mbarrier_wait(barrier, 1);
  }
}
MISUSE(mbarrier_overwritten) {
  const u32 barrier = barrier_of(128, true);
  if (threadIdx.x == 5) *reinterpret_cast<u64*>(SharedMemory().take<u64, 1024>(1)) = 3;
  sync_block();
  mbarrier_arrive(barrier);
}
MISUSE(mbarrier_of_none) { barrier_of(0, true); }
MISUSE(mbarrier_twice) {
  barrier_of(1, true);
  barrier_of(1, true);
}
MISUSE(mbarrier_misaligned) {
  u32* words = SharedMemory().take<u32>(4);
  mbarrier_init(shared_address(words + 1), 1);
}
MISUSE(mbarrier_parity) { mbarrier_test(barrier_of(1, true), 2); }
MISUSE(mbarrier_wrong_phase) {
  const u32 barrier = barrier_of(128, true);
  mbarrier_arrive(barrier);
  mbarrier_wait(barrier, 0);
  mbarrier_wait(barrier, 1);
}
MISUSE(mbarrier_invalidated_under_waiters) {
  const u32 barrier = barrier_of(128, true);
  if (threadIdx.x >= 64) mbarrier_wait(barrier, 0);
  if (threadIdx.x == 0) mbarrier_invalidate(barrier);
}
MISUSE(mbarrier_too_many_arrivals) {
  const u32 barrier = barrier_of(32, true);
  if (threadIdx.x < 64) mbarrier_arrive(barrier);
}
MISUSE(mbarrier_overtaken) {
  const u32 barrier = barrier_of(1, true);
  if (threadIdx.x >= 64) mbarrier_wait(barrier, 0);
  if (threadIdx.x == 0) {
    mbarrier_arrive(barrier);
    mbarrier_arrive(barrier);
  }
}
MISUSE(mbarrier_arrivals_over_bytes) {
  const u32 barrier = barrier_of(1, true);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, 64);
    mbarrier_arrive(barrier);
  }
}
MISUSE(mbarrier_bytes_over_the_count) {
  const u32 barrier = barrier_of(1, true);
  if (threadIdx.x == 0) mbarrier_expect(barrier, 1 << 20);
}

MISUSE(tma_without_init_fence) {
  const u32 barrier = barrier_of(1, false);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, 1024);
    tma_load_2d(shared_address(box_of()), &params.maps[0], barrier, 0, 0);
  }
}
MISUSE(tma_fewer_bytes_expected) {
  const u32 barrier = barrier_of(1, true);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, 512);
    tma_load_2d(shared_address(box_of()), &params.maps[0], barrier, 0, 0);
    mbarrier_wait(barrier, 0);
  }
}
MISUSE(tma_no_bytes_expected) {
  const u32 barrier = barrier_of(1, true);
  if (threadIdx.x == 0) {
    tma_load_2d(shared_address(box_of()), &params.maps[0], barrier, 0, 0);
    mbarrier_arrive(barrier);
    mbarrier_wait(barrier, 0);
    mbarrier_wait(barrier, 1);
    sync_warp(1);
  }
}
MISUSE(tma_more_bytes_expected) {
  const u32 barrier = barrier_of(1, true);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, 2048);
    tma_load_2d(shared_address(box_of()), &params.maps[0], barrier, 0, 0);
    mbarrier_wait(barrier, 0);
  }
}
MISUSE(tma_box_misaligned) {
  const u32 barrier = barrier_of(1, true);
  if (threadIdx.x == 0) tma_load_2d(shared_address(box_of()) + 512, &params.maps[0], barrier, 0, 0);
}
MISUSE(tma_box_misaligned_without_swizzle) {
  const u32 barrier = barrier_of(1, true);
  if (threadIdx.x == 0) tma_load_3d(shared_address(box_of()) + 64, &params.maps[1], barrier, 0, 0, 0);
}
MISUSE(tma_map_of_another_rank) {
  const u32 barrier = barrier_of(1, true);
  if (threadIdx.x == 0) tma_load_3d(shared_address(box_of()), &params.maps[0], barrier, 0, 0, 0);
}
MISUSE(tma_map_on_the_stack) {
  const LoraTest copy = params;
  if (threadIdx.x == 0) tma_prefetch(&copy.maps[0]);
}
MISUSE(tma_map_misaligned) { tma_prefetch(reinterpret_cast<const TensorMap*>(&params.maps[0].opaque[1])); }
MISUSE(tma_no_map) { tma_prefetch(reinterpret_cast<const TensorMap*>(&params.in[0])); }
MISUSE(tma_tensor_outside) {
  const u32 barrier = barrier_of(1, true);
  // in[1] is a tensor map with more rows than in[0] has.
  if (threadIdx.x == 0) {
    tma_load_2d(shared_address(box_of()), static_cast<const TensorMap*>(params.in[1]), barrier, 0, 124);
  }
}
MISUSE(tma_read_early) {
  const u32 barrier = barrier_of(1, true);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, 1024);
    tma_load_2d(shared_address(box_of()), &params.maps[0], barrier, 0, 0);
    load_shared(reinterpret_cast<const Chunk*>(box_of()));
  }
}
MISUSE(tma_two_at_one_place) {
  const u32 barrier = barrier_of(1, true);
  if (threadIdx.x == 0) {
    tma_load_2d(shared_address(box_of()), &params.maps[0], barrier, 0, 0);
    tma_load_2d(shared_address(box_of()), &params.maps[0], barrier, 0, 8);
  }
}
MISUSE(tma_source_changed) {
  const u32 barrier = barrier_of(1, true);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, 1024);
    tma_load_2d(shared_address(box_of()), &params.maps[0], barrier, 0, 0);
    store(words_in(params) + 3, 99u);
    mbarrier_wait(barrier, 0);
  }
}
MISUSE(tma_not_waited_for) {
  const u32 barrier = barrier_of(1, true);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, 1024);
    tma_load_2d(shared_address(box_of()), &params.maps[0], barrier, 0, 0);
  }
}
// The box was written by ordinary stores, and no proxy fence orders them before the copy.
MISUSE(tma_over_plain_writes) {
  const u32 barrier = barrier_of(1, true);
  u8* box = box_of();
  for (u32 i = threadIdx.x; i < 64; i += blockDim.x) store_shared(reinterpret_cast<Chunk*>(box) + i, Chunk{});
  sync_block();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, 1024);
    tma_load_2d(shared_address(box), &params.maps[0], barrier, 0, 0);
  }
}
MISUSE(tma_of_another_threads_writes) {
  const u32 barrier = barrier_of(1, true);
  store(words_in(params) + threadIdx.x, threadIdx.x);
  sync_block();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, 1024);
    tma_load_2d(shared_address(box_of()), &params.maps[0], barrier, 0, 0);
  }
}

namespace {

GPU_DEVICE u8* filled_box(bool fenced) {
  u8* box = box_of();
  Chunk* chunks = reinterpret_cast<Chunk*>(box);
  for (u32 i = threadIdx.x; i < 64; i += blockDim.x) store_shared(chunks + i, Chunk{{i, 1, 2, 3}});
  if (fenced) fence_proxy_async_shared();
  sync_block();
  return box;
}

}  // namespace

MISUSE(tma_store_without_fence) {
  u8* box = filled_box(false);
  if (threadIdx.x == 0) tma_store_2d(&params.maps[0], shared_address(box), 0, 0);
}
MISUSE(tma_store_not_waited_for) {
  u8* box = filled_box(true);
  if (threadIdx.x == 0) {
    tma_store_2d(&params.maps[0], shared_address(box), 0, 0);
    bulk_commit();
  }
}
MISUSE(tma_store_source_changed) {
  u8* box = filled_box(true);
  if (threadIdx.x == 0) {
    tma_store_2d(&params.maps[0], shared_address(box), 0, 0);
    bulk_commit();
    *reinterpret_cast<volatile u32*>(box) = 77;
    bulk_wait_read<0>();
  }
}
// bulk_wait_read says only that shared memory has been read, not that global memory has been written.
MISUSE(tma_store_read_early) {
  u8* box = filled_box(true);
  if (threadIdx.x == 0) {
    tma_store_2d(&params.maps[0], shared_address(box), 0, 0);
    bulk_commit();
    bulk_wait_read<0>();
    load(words_in(params));
  }
}
