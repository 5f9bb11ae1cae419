// gpu/block.h.
#include <gpu/block.h>
#include <gpu/memory.h>
#include <gpu/shared.h>
#include <gpu/warp.h>
#include <test/test.h>

// A value moves to the next thread n[0] times. Threads from the third warp on exit at once: the barrier counts the others
// only. out[0]: the value of each of 64 threads.
GPU_KERNEL(test_block_rotate, LoraTest, 128, 1) {
  using namespace test;
  SharedMemory shared;
  u32* word = shared.take<u32>(64);
  if (threadIdx.x >= 64) return;
  u32 mine = threadIdx.x;
  for (u32 round = 0; round < params.n[0]; round++) {
    word[(threadIdx.x + 1) % 64] = mine;
    sync_block();
    mine = word[threadIdx.x];
    sync_block();
  }
  store(out<u32>(params, 0) + threadIdx.x, mine);
}

// in[0]: a word per thread, whose bits are conditions. out[0]: for each thread the bits for which any thread's holds.
GPU_KERNEL(test_block_or, LoraTest, 96, 1) {
  using namespace test;
  const u32 word = load(in<u32>(params, 0) + threadIdx.x);
  u32 any = 0;
  for (u32 bit = 0; bit < 32; bit++) any |= u32{sync_block_or(word >> bit & 1)} << bit;
  store(out<u32>(params, 0) + threadIdx.x, any);
}

// The first warp writes, the second and third read. Barrier 1: a value is there; barrier 2: it may be overwritten; barrier
// 15: the readers alone. out[0]: a sum per reader.
GPU_KERNEL(test_block_named, LoraTest, 96, 1) {
  using namespace test;
  SharedMemory shared;
  u32* word = shared.take<u32>(32);
  u32* exchange = shared.take<u32>(64);
  u32 sum = 0;
  if (warp_id() == 0) {
    for (u32 round = 0; round < params.n[0]; round++) {
      if (round != 0) sync_named(2, 96);
      word[lane_id()] = round * 100 + lane_id();
      arrive_named(1, 96);
    }
    return;
  }
  const u32 reader = threadIdx.x - 32;
  for (u32 round = 0; round < params.n[0]; round++) {
    sync_named(1, 96);
    sum += word[31 - lane_id()];
    if (round + 1 != params.n[0]) arrive_named(2, 96);
    exchange[reader] = sum;
    sync_named(15, 64);
    sum += exchange[63 - reader];
    sync_named(15, 64);
  }
  store(out<u32>(params, 0) + reader, sum);
}
