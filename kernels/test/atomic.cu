// gpu/atomic.h, between CTAs.
#include <gpu/atomic.h>
#include <gpu/block.h>
#include <gpu/memory.h>
#include <gpu/shared.h>
#include <test/test.h>

namespace test {

template <class T>
GPU_DEVICE void count(const LoraTest& p, u32 to) {
  T* before = out<T>(p, to) + 1;
  store(before + thread_of_grid(), fetch_add_relaxed(out<T>(p, to), T{3}));
}

// CTAs run in the order of their tickets: each updates a plain array that the CTA before it stored, then sets the flag for
// the next.
template <class T>
GPU_DEVICE void hand_on(const LoraTest& p, u32 flags_at, u32 values_at) {
  SharedMemory shared;
  u32* ticket = shared.take<u32>(1);
  T* flag = out<T>(p, flags_at);
  u32* values = out<u32>(p, values_at);
  if (threadIdx.x == 0) {
    *ticket = static_cast<u32>(fetch_add_relaxed(flag, T{1}));
    while (load_acquire(flag + 1) != *ticket) back_off();
  }
  sync_block();
  u32* mine = values + threadIdx.x;
  store(mine, load(mine) * 3 + *ticket);
  sync_block();
  if (threadIdx.x == 0) store_release(flag + 1, T(*ticket + 1));
}

// Each CTA stores a value per thread; the last to arrive adds all of them.
template <class T>
GPU_DEVICE void last_adds(const LoraTest& p, u32 counter_at, u32 values_at) {
  SharedMemory shared;
  u32* arrived = shared.take<u32>(1);
  u32* values = out<u32>(p, values_at);
  store(values + blockDim.x + thread_of_grid(), thread_of_grid() * 5 + 1);
  sync_block();
  if (threadIdx.x == 0) *arrived = static_cast<u32>(fetch_add_acq_rel(out<T>(p, counter_at), T{1}));
  sync_block();
  if (*arrived != gridDim.x - 1) return;
  u32 sum = 0;
  for (u32 cta = 1; cta <= gridDim.x; cta++) sum += load(values + cta * blockDim.x + threadIdx.x);
  store(values + threadIdx.x, sum);
}

}  // namespace test

// out[0] u32, out[1] u64: a counter and the value that each thread found in it; out[2]: the largest value of in[0], and the
// values found.
GPU_KERNEL(test_atomic_counters, LoraTest, 32, 1) {
  using namespace test;
  count<u32>(params, 0);
  count<u64>(params, 1);
  const u32 value = load(in<u32>(params, 0) + thread_of_grid());
  store(out<u32>(params, 2) + 1 + thread_of_grid(), fetch_max_relaxed(out<u32>(params, 2), value));
}

// out[0]: tickets, flag; out[1]: a value per thread.
GPU_KERNEL(test_atomic_hand_on_u32, LoraTest, 32, 1) { test::hand_on<gpu::u32>(params, 0, 1); }
GPU_KERNEL(test_atomic_hand_on_u64, LoraTest, 32, 1) { test::hand_on<gpu::u64>(params, 0, 1); }

// out[0]: arrivals; out[1]: a sum per thread, then each CTA's values.
GPU_KERNEL(test_atomic_last_u32, LoraTest, 32, 1) { test::last_adds<gpu::u32>(params, 0, 1); }
GPU_KERNEL(test_atomic_last_u64, LoraTest, 32, 1) { test::last_adds<gpu::u64>(params, 0, 1); }

// Words that are flags themselves: zero until they are written. The CTA with the first ticket writes, the others poll and
// read. out[0]: tickets; out[1] u64 and out[2] u32: the words, zero at first; out[3]: what was read.
GPU_KERNEL(test_atomic_words, LoraTest, 32, 1) {
  using namespace test;
  SharedMemory shared;
  u32* ticket = shared.take<u32>(1);
  if (threadIdx.x == 0) *ticket = fetch_add_relaxed(out<u32>(params, 0), u32{1});
  sync_block();
  u64* wide = out<u64>(params, 1) + threadIdx.x;
  u32* narrow = out<u32>(params, 2) + threadIdx.x;
  if (*ticket == 0) {
    store_relaxed(wide, u64{1} << 32 | threadIdx.x);
    fence_acq_rel();
    store_relaxed(narrow, 100 + threadIdx.x);
    return;
  }
  u64 first = 0;
  u32 second = 0;
  while ((first = load_relaxed(wide)) >> 32 == 0) back_off();
  while ((second = load_relaxed(narrow)) == 0) back_off();
  store(out<u32>(params, 3) + (*ticket - 1) * blockDim.x + threadIdx.x, static_cast<u32>(first) + second);
}
