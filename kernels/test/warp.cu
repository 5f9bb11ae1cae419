// gpu/warp.h.
#include <gpu/convert.h>
#include <gpu/memory.h>
#include <gpu/shared.h>
#include <gpu/warp.h>
#include <test/test.h>

namespace test {

// Four shuffles of all lanes, then four of the even lanes and four of the odd lanes separately.
template <class T>
GPU_DEVICE void shuffles(T value, T* to) {
  const u32 lane = lane_id();
  T* mine = to + warp_id() * 8 * warp_size + lane;
  store(mine + 0 * warp_size, shuffle(value, (lane * 7 + 3) % warp_size));
  store(mine + 1 * warp_size, shuffle_xor(value, 21));
  store(mine + 2 * warp_size, shuffle_down(value, 5));
  store(mine + 3 * warp_size, shuffle_up(value, 9));
  // In a divergent warp a shuffle is between the lanes of its mask only.
  if (lane % 2 == 0) {
    store(mine + 4 * warp_size, shuffle(value, (lane + 10) % warp_size, 0x55555555));
    store(mine + 5 * warp_size, shuffle_xor(value, 6, 0x55555555));
    store(mine + 6 * warp_size, shuffle_down(value, 4, 0x55555555));
    store(mine + 7 * warp_size, shuffle_up(value, 2, 0x55555555));
  } else {
    store(mine + 4 * warp_size, shuffle(value, (lane + 20) % warp_size, 0xaaaaaaaa));
    store(mine + 5 * warp_size, shuffle_xor(value, 16, 0xaaaaaaaa));
    store(mine + 6 * warp_size, shuffle_down(value, 2, 0xaaaaaaaa));
    store(mine + 7 * warp_size, shuffle_up(value, 8, 0xaaaaaaaa));
  }
}

}  // namespace test

// in[0]: a u64 per thread. out[i]: results of the shuffles of its value as u32, i32, float, u64; behind those in out[3]: as
// double.
GPU_KERNEL(test_warp_shuffles, LoraTest, 64, 1) {
  using namespace test;
  const u64 value = load(in<u64>(params, 0) + threadIdx.x);
  shuffles(static_cast<u32>(value), out<u32>(params, 0));
  shuffles(static_cast<i32>(value), out<i32>(params, 1));
  shuffles(from_bits(static_cast<u32>(value)), out<float>(params, 2));
  shuffles(value, out<u64>(params, 3));
  shuffles(__builtin_bit_cast(double, value), out<double>(params, 3) + 8 * blockDim.x);
}

// in[0]: a word per thread, whose bits are conditions. out[0]: for each bit the ballot, all, any of the warp, then those of
// its lower eight lanes.
GPU_KERNEL(test_warp_votes, LoraTest, 64, 1) {
  using namespace test;
  const u32 word = load(in<u32>(params, 0) + threadIdx.x);
  for (u32 bit = 0; bit < 32; bit++) {
    const bool condition = word >> bit & 1;
    u32* to = out<u32>(params, 0) + (threadIdx.x * 32 + bit) * 6;
    store(to + 0, gpu::ballot(condition));
    store(to + 1, u32{gpu::all(condition)});
    store(to + 2, u32{gpu::any(condition)});
    if (lane_id() < 8) {
      store(to + 3, gpu::ballot(condition, 0xff));
      store(to + 4, u32{gpu::all(condition, 0xff)});
      store(to + 5, u32{gpu::any(condition, 0xff)});
    }
  }
}

// Neighbouring lanes pass words through shared memory; then the lanes of the upper half do so alone. out[0]: the sum of what
// came; out[1]: whether the lane was elected, in two elections.
GPU_KERNEL(test_warp_memory, LoraTest, 64, 1) {
  using namespace test;
  SharedMemory shared;
  u32* word = shared.take<u32>(64) + warp_id() * warp_size;
  word[lane_id()] = 10 * threadIdx.x;
  sync_warp();
  u32 sum = word[(lane_id() + 1) % warp_size];
  sync_warp();
  if (lane_id() >= 16) {
    word[lane_id()] = sum;
    sync_warp(0xffff0000);
    sum += word[lane_id() ^ 15];
  }
  sync_warp();
  store(out<u32>(params, 0) + threadIdx.x, sum);
  for (u32 round = 0; round < 2; round++) store(out<u32>(params, 1) + 64 * round + threadIdx.x, u32{elect_one()});
}
