// Reads memory as fast as it can be read: the baseline of the decode kernels. A CTA reads a contiguous tile, each thread
// LORA_READ_UNROLL chunks of it at a time, as the decode kernels read a weight. The store at the end depends on all loaded
// words and keeps the compiler from removing the loads; with random data hardly any thread executes it.
//
// sass: lora_read  registers <= 64  has LDG.E.128  lacks STG.E.128
#include <abi.h>
#include <gpu/math.h>
#include <gpu/memory.h>

GPU_KERNEL(lora_read, LoraRead, LORA_READ_THREADS, 2) {
  using namespace gpu;
  const Chunk* from = static_cast<const Chunk*>(params.from);
  const u64 tile = (params.chunks + gridDim.x - 1) / gridDim.x;
  const u64 begin = tile * blockIdx.x, end = gpu::min(begin + tile, u64(params.chunks));
  u32 bits = 0;
  for (u64 at = begin + threadIdx.x; at < end; at += LORA_READ_THREADS * LORA_READ_UNROLL) {
    Chunk chunk[LORA_READ_UNROLL];
#pragma unroll
    for (u32 i = 0; i < LORA_READ_UNROLL; i++) {
      const u64 place = at + u64(i) * LORA_READ_THREADS;
      chunk[i] = load_constant_once(from + (place < end ? place : at));
    }
#pragma unroll
    for (u32 i = 0; i < LORA_READ_UNROLL; i++) {
      bits |= chunk[i].word[0] | chunk[i].word[1] | chunk[i].word[2] | chunk[i].word[3];
    }
  }
  if ((bits & 1) == 0 && begin < end) store(params.sink, bits);
}
