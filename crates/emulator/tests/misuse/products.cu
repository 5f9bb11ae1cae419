// Matrix instructions: ldmatrix, mma.sync and wgmma.
#include <gpu/convert.h>
#include <gpu/mma.h>
#include <gpu/tma.h>
#include <gpu/wgmma.h>
#include <misuse.h>

MISUSE(ldmatrix_misaligned) {
  u32* words = SharedMemory().take<u32>(256);
  words[2 * threadIdx.x] = words[2 * threadIdx.x + 1] = 0;
  sync_block();
  u32 r[1];
  ldmatrix_x1(r, shared_address(words + 2 * lane_id()));
}
MISUSE(ldmatrix_outside) {
  Chunk* chunks = SharedMemory().take<Chunk>(31);
  u32 r[4];
  if (threadIdx.x < 31) store_shared(chunks + threadIdx.x, Chunk{});
  sync_block();
  ldmatrix_x4(r, shared_address(chunks + lane_id()));
}
MISUSE(mma_without_a_lane) {
  float d[4] = {};
  const u32 a[4] = {}, b[2] = {};
  if (lane_id() != 3) mma_m16n8k16<f16>(d, a, b);
}
MISUSE(mma_not_rounded) {
  float d[4] = {};
  const u32 a[4] = {}, b[2] = {0, bits(lane_id() == 3 ? 0.1f : 0.5f)};
  mma_m16n8k8_tf32(d, a, b);
}

namespace {

// Two tiles of 64 × 64 in shared memory, filled with ones.
struct Tiles {
  u8 *a, *b;
  u64 a_descriptor, b_descriptor;

  GPU_DEVICE explicit Tiles(bool fenced) {
    SharedMemory shared;
    a = shared.take<u8, 1024>(8192);
    b = shared.take<u8, 1024>(8192);
    for (u32 i = threadIdx.x; i < 512; i += blockDim.x) {
      const Chunk ones{{0x3c003c00, 0x3c003c00, 0x3c003c00, 0x3c003c00}};
      store_shared(reinterpret_cast<Chunk*>(a) + i, ones);
      store_shared(reinterpret_cast<Chunk*>(b) + i, ones);
    }
    if (fenced) fence_proxy_async_shared();
    sync_block();
    a_descriptor = wgmma_descriptor(shared_address(a), 0, 1024);
    b_descriptor = wgmma_descriptor(shared_address(b), 0, 1024);
  }
};

GPU_DEVICE void multiply(float (&d)[32], u64 a, u64 b) { wgmma_m64k16<f16, 64, Major::K, Major::K>(d, a, b, 0); }

GPU_DEVICE void finish(float (&d)[32]) {
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_fence_operands(d);
}

}  // namespace

MISUSE(wgmma_correct) {
  const Tiles tiles(true);
  float d[32];
  wgmma_fence();
  multiply(d, tiles.a_descriptor, tiles.b_descriptor);
  wgmma_commit();
  // Before the wait the registers hold NaN.
  store(words_out(params) + threadIdx.x, __builtin_bit_cast(u32, static_cast<volatile float*>(d)[5]));
  wgmma_wait<0>();
  wgmma_fence_operands(d);
  store(words_out(params) + 128 + threadIdx.x, __builtin_bit_cast(u32, d[5]));
}
MISUSE(wgmma_of_two_warps) {
  float d[32];
  if (threadIdx.x < 64) multiply(d, 0, 0);
}
MISUSE(wgmma_after_an_exit) {
  const Tiles tiles(true);
  float d[32];
  if (threadIdx.x >= 96) return;
  sync_block();
  wgmma_fence();
  multiply(d, tiles.a_descriptor, tiles.b_descriptor);
}
MISUSE(wgmma_at_two_places) {
  const Tiles tiles(true);
  float d[32];
  wgmma_fence();
  if (threadIdx.x < 64) {
    multiply(d, tiles.a_descriptor, tiles.b_descriptor);
  } else {
    wgmma_commit();
  }
}
MISUSE(wgmma_of_different_operands) {
  const Tiles tiles(true);
  float d[32];
  wgmma_fence();
  multiply(d, threadIdx.x < 32 ? tiles.a_descriptor : tiles.b_descriptor, tiles.b_descriptor);
}
MISUSE(wgmma_without_proxy_fence) {
  const Tiles tiles(false);
  float d[32];
  wgmma_fence();
  multiply(d, tiles.a_descriptor, tiles.b_descriptor);
}
MISUSE(wgmma_without_fence) {
  const Tiles tiles(true);
  float d[32] = {};
  multiply(d, tiles.a_descriptor, tiles.b_descriptor);
}
MISUSE(wgmma_registers_without_fence) {
  const Tiles tiles(true);
  float d[32] = {};
  const u32 a[4] = {1, 2, 3, 4};
  wgmma_m64k16_registers<f16, 64, Major::K>(d, a, tiles.b_descriptor, 0);
}
MISUSE(wgmma_second_without_fence) {
  const Tiles tiles(true);
  float d[32];
  wgmma_fence();
  multiply(d, tiles.a_descriptor, tiles.b_descriptor);
  finish(d);
  d[3] = 7;
  multiply(d, tiles.a_descriptor, tiles.b_descriptor);
}
MISUSE(wgmma_accumulators_written) {
  const Tiles tiles(true);
  float d[32];
  wgmma_fence();
  multiply(d, tiles.a_descriptor, tiles.b_descriptor);
  wgmma_commit();
  static_cast<volatile float*>(d)[4] = 1;
  wgmma_wait<0>();
}
MISUSE(wgmma_registers_written) {
  const Tiles tiles(true);
  float d[32];
  u32 a[4] = {1, 2, 3, 4};
  wgmma_fence();
  wgmma_m64k16_registers<f16, 64, Major::K>(d, a, tiles.b_descriptor, 0);
  wgmma_commit();
  static_cast<volatile u32*>(a)[2] = 9;
  wgmma_wait<0>();
}
MISUSE(wgmma_operand_written) {
  const Tiles tiles(true);
  float d[32];
  wgmma_fence();
  multiply(d, tiles.a_descriptor, tiles.b_descriptor);
  wgmma_commit();
  if (threadIdx.x == 40) *reinterpret_cast<volatile u32*>(tiles.b) = 5;
  wgmma_wait<0>();
}
MISUSE(wgmma_fence_operands_early) {
  const Tiles tiles(true);
  float d[32];
  wgmma_fence();
  multiply(d, tiles.a_descriptor, tiles.b_descriptor);
  wgmma_commit();
  wgmma_fence_operands(d);
}
MISUSE(wgmma_overlapping) {
  const Tiles tiles(true);
  float d[48];
  wgmma_fence();
  multiply(*reinterpret_cast<float(*)[32]>(d), tiles.a_descriptor, tiles.b_descriptor);
  multiply(*reinterpret_cast<float(*)[32]>(d + 16), tiles.a_descriptor, tiles.b_descriptor);
}
MISUSE(wgmma_not_waited_for) {
  const Tiles tiles(true);
  float d[32];
  wgmma_fence();
  multiply(d, tiles.a_descriptor, tiles.b_descriptor);
  wgmma_commit();
}
MISUSE(wgmma_different_waits) {
  if (threadIdx.x < 64) {
    wgmma_wait<0>();
  } else {
    wgmma_wait<1>();
  }
}
MISUSE(wgmma_descriptor_unswizzled) {
  const Tiles tiles(true);
  float d[32];
  wgmma_fence();
  multiply(d, tiles.a_descriptor & ~(u64{3} << 62), tiles.b_descriptor);
}
MISUSE(wgmma_descriptor_within_a_pattern) {
  const Tiles tiles(true);
  float d[32];
  wgmma_fence();
  multiply(d, tiles.a_descriptor + 128 / 16, tiles.b_descriptor);
}
MISUSE(wgmma_descriptor_over_a_row) {
  const Tiles tiles(true);
  float d[32];
  wgmma_fence();
  multiply(d, tiles.a_descriptor + 112 / 16, tiles.b_descriptor);
}
MISUSE(wgmma_descriptor_stride) {
  const Tiles tiles(true);
  float d[32];
  wgmma_fence();
  multiply(d, wgmma_descriptor(shared_address(tiles.a), 0, 512), tiles.b_descriptor);
}
MISUSE(wgmma_descriptor_leads_outside) {
  const Tiles tiles(true);
  float d[32];
  wgmma_fence();
  multiply(d, wgmma_descriptor(shared_address(tiles.a), 0, 4096), tiles.b_descriptor);
}
MISUSE(wgmma_descriptor_odd) { wgmma_descriptor(shared_address(SharedMemory().take<u8, 1024>(16)), 8, 1024); }
MISUSE(wgmma_descriptor_far) {
  SharedMemory shared;
  for (u32 i = 0; i < 256; i++) shared.take<u8>(16);
  wgmma_descriptor(shared_address(shared.take<u8, 1024>(16)), 0, 1024);
}
