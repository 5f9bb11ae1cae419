// gpu/registers.h.
//
// targets: sm_90a
#include <gpu/block.h>
#include <gpu/memory.h>
#include <gpu/registers.h>
#include <gpu/warp.h>
#include <test/test.h>

// 384 threads start with 168 registers each. The first warpgroup gives up most of its registers, the others take them; then
// all have as many as at the start. out[0]: a sum per thread of the values that it held meanwhile.
GPU_KERNEL(test_registers, LoraTest, 384, 1) {
  using namespace test;
  const u32 first = load(in<u32>(params, 0) + threadIdx.x);
  u32 sum = 0;
  if (threadIdx.x < 128) {
    decrease_registers<24>();
    sum = 3 * first;
    sync_block();
    increase_registers<168>();
  } else {
    increase_registers<240>();
    u32 held[64];
#pragma unroll
    for (u32 i = 0; i < 64; i++) held[i] = load(in<u32>(params, 0) + (threadIdx.x + i) % 384);
#pragma unroll
    for (u32 i = 0; i < 64; i++) sum += held[i] * (held[63 - i] | 1);
    sync_block();
    decrease_registers<168>();
  }
  store(out<u32>(params, 0) + threadIdx.x, sum + first);
}
