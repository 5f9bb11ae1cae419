// gpu/copy_async.h.
#include <gpu/block.h>
#include <gpu/copy_async.h>
#include <gpu/memory.h>
#include <gpu/shared.h>
#include <test/test.h>

// in[0]: 17 chunks of 16 bytes, in[1]: 5 words. out[0]: the first i bytes of chunk i, then zeros; out[1]: the same of word
// i.
GPU_KERNEL(test_copy_async_part, LoraTest, 32, 1) {
  using namespace test;
  SharedMemory shared;
  Chunk* chunks = shared.take<Chunk>(18);
  u32* words = shared.take<u32>(6);
  const u32 i = threadIdx.x;
  if (i < 17) copy_async_16(shared_address(chunks + i), in<Chunk>(params, 0) + i, i);
  if (i == 17) copy_async_16(shared_address(chunks + 17), in<Chunk>(params, 0) + 3);
  if (i < 5) copy_async_4(shared_address(words + i), in<u32>(params, 1) + i, i);
  if (i == 5) copy_async_4(shared_address(words + 5), in<u32>(params, 1) + 2);
  copy_async_commit();
  copy_async_wait<0>();
  sync_block();
  // Read by other threads than those that copied.
  if (i < 18) store(out<Chunk>(params, 0) + 17 - i, load_shared(chunks + 17 - i));
  if (i < 6) store(out<u32>(params, 1) + 5 - i, words[5 - i]);
}

// Stages of 32 chunks; two are in flight while one is summed. n[0]: steps. out[0]: four sums per thread.
GPU_KERNEL(test_copy_async_ring, LoraTest, 32, 1) {
  using namespace test;
  constexpr u32 stages = 3;
  SharedMemory shared;
  Chunk* ring = shared.take<Chunk>(stages * 32);
  const Chunk* source = in<Chunk>(params, 0) + threadIdx.x;
  const u32 rounds = params.n[0];
  for (u32 i = 0; i < stages - 1; i++) {
    if (i < rounds) copy_async_16(shared_address(ring + i * 32 + threadIdx.x), source + i * 32);
    copy_async_commit();
  }
  Chunk sum = {};
  for (u32 i = 0; i < rounds; i++) {
    copy_async_wait<stages - 2>();
    sync_block();
    // After the barrier all threads have also read the stage that is filled now.
    const u32 next = i + stages - 1;
    if (next < rounds) copy_async_16(shared_address(ring + next % stages * 32 + threadIdx.x), source + next * 32);
    copy_async_commit();
    const Chunk chunk = load_shared(ring + i % stages * 32 + (threadIdx.x ^ 1));
    for (u32 w = 0; w < 4; w++) sum.word[w] += chunk.word[w] * (i + 1);
  }
  store(out<Chunk>(params, 0) + threadIdx.x, sum);
}
