// gpu/memory.h and gpu/shared.h.
#include <gpu/memory.h>
#include <gpu/shared.h>
#include <gpu/block.h>
#include <test/test.h>

namespace test {

// Copies `bytes` bytes element by element, and once more through `load_constant` and `load_input` by turns. A thread stores at least two bytes, which
// is the granularity of the emulator's race detector.
template <class T>
GPU_DEVICE void copy(const LoraTest& p, u32 region, u32 bytes) {
  constexpr u32 run = sizeof(T) == 1 ? 2 : 1;
  const u32 stride = gridDim.x * blockDim.x * run, size = bytes / sizeof(T), at = region * size;
  for (u32 first = thread_of_grid() * run; first < size; first += stride) {
    for (u32 i = first; i < first + run; i++) {
      store(out<T>(p, 0) + at + i, load(in<T>(p, 0) + i));
      const T* place = in<T>(p, 0) + i;
      store(out<T>(p, 1) + at + i, i % 2 == 0 ? load_constant(place) : load_input(place));
    }
  }
}

}  // namespace test

// out[0], out[1]: five copies of the n[0] bytes of in[0], in accesses of 1, 2, 4, 8 and 16 bytes.
GPU_KERNEL(test_memory_widths, LoraTest, 64, 1) {
  using namespace test;
  const u32 bytes = params.n[0];
  copy<u8>(params, 0, bytes);
  copy<u16>(params, 1, bytes);
  copy<float>(params, 2, bytes);
  copy<u64>(params, 3, bytes);
  copy<Chunk>(params, 4, bytes);
}

// out[0][i] = in[0][i ^ 5], chunks of 16 bytes through shared memory.
GPU_KERNEL(test_memory_shared, LoraTest, 64, 1) {
  using namespace test;
  SharedMemory shared;
  Chunk* chunks = shared.take<Chunk>(64);
  const Chunk* source = in<Chunk>(params, 0) + thread_of_grid();
  prefetch_l2(source);
  store_shared(chunks + threadIdx.x, threadIdx.x % 2 == 0 ? load_constant_once(source) : load_input_once(source));
  sync_block();
  store(out<Chunk>(params, 0) + thread_of_grid(), load_shared(chunks + (threadIdx.x ^ 5)));
}

// out[0]: shared addresses of three pieces of 6 bytes, 5 words, and 64 bytes at a multiple of 1024; each thread writes
// and reads plainly in all of them.
GPU_KERNEL(test_memory_pieces, LoraTest, 32, 1) {
  using namespace test;
  SharedMemory shared;
  u8* bytes = shared.take<u8, 1>(6);
  u32* words = shared.take<u32>(5);
  u16* aligned = shared.take<u16, 1024>(32);
  aligned[threadIdx.x] = static_cast<u16>(3 * threadIdx.x);
  if (threadIdx.x < 5) words[threadIdx.x] = 1000 + threadIdx.x;
  if (threadIdx.x < 3) bytes[2 * threadIdx.x] = bytes[2 * threadIdx.x + 1] = static_cast<u8>(threadIdx.x + 7);
  sync_block();
  if (threadIdx.x == 0) {
    u32* to = out<u32>(params, 0);
    store(to + 0, shared_address(bytes));
    store(to + 1, shared_address(words));
    store(to + 2, shared_address(aligned));
  }
  const u32 other = 31 - threadIdx.x;
  store(out<u32>(params, 1) + threadIdx.x, bytes[other % 6] + words[other % 5] + aligned[other]);
}
