// A whole tile: TMA loads, mbarriers, wgmma, and a TMA store.
//
// targets: sm_90a
#include <gpu/block.h>
#include <gpu/convert.h>
#include <gpu/mbarrier.h>
#include <gpu/registers.h>
#include <gpu/warp.h>
#include <test/operand.h>

// d [128, 64] = a [128, 64 n[0]] · b [64, 64 n[0]]ᵀ in bf16. One warp copies K steps (maps[0], maps[1]) into a ring; two
// consumer warpgroups multiply 64 rows each, keep one group of MMAs in flight, and release a stage once its MMAs are done.
// Then they write bf16 to shared memory, from where TMA stores it to out[0]; the map of out[0] is in global memory at in[0].
GPU_KERNEL(test_wgmma_ring, LoraTest, 384, 1) {
  using namespace test;
  constexpr u32 stages = 3, n = 64;
  using A = Operand<64, Major::K>;
  using B = Operand<n, Major::K>;
  constexpr u32 stage_bytes = 2 * A::bytes + B::bytes;
  SharedMemory shared;
  Chunk* tiles = shared.take<Chunk, 1024>(stages * stage_bytes / 16);
  Chunk* results = shared.take<Chunk, 1024>(2 * 64 * row_chunks);
  u64* barriers = shared.take<u64>(2 * stages);
  const u32 full = shared_address(barriers), empty = shared_address(barriers + stages);
  const u32 group = threadIdx.x / 128, rounds = params.n[0];
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < stages; i++) {
      mbarrier_init(full + 8 * i, 1);
      mbarrier_init(empty + 8 * i, 2);
    }
    fence_mbarrier_init();
  }
  sync_block();

  if (group == 2) {
    decrease_registers<40>();
    if (warp_id() != 8 || !elect_one()) return;
    for (u32 i = 0; i < rounds; i++) {
      const u32 stage = i % stages, barrier = full + 8 * stage;
      Chunk* tile = tiles + stage * stage_bytes / 16;
      mbarrier_wait(empty + 8 * stage, i / stages % 2 ^ 1);
      mbarrier_arrive_expect(barrier, stage_bytes);
      A{tile}.fetch(&params.maps[0], barrier, 64 * i, 0);
      A{tile + A::bytes / 16}.fetch(&params.maps[0], barrier, 64 * i, 64);
      B{tile + 2 * A::bytes / 16}.fetch(&params.maps[1], barrier, 64 * i, 0);
    }
    return;
  }

  increase_registers<232>();
  const u32 thread = threadIdx.x % 128;
  float d[n / 2];
  for (u32 i = 0; i < rounds; i++) {
    const u32 stage = i % stages;
    Chunk* tile = tiles + stage * stage_bytes / 16;
    const A a{tile + group * A::bytes / 16};
    const B b{tile + 2 * A::bytes / 16};
    mbarrier_wait(full + 8 * stage, i / stages % 2);
    wgmma_fence();
#pragma unroll
    for (u32 step = 0; step < 4; step++) {
      wgmma_m64k16<bf16, n, Major::K, Major::K>(d, a.descriptor(step), b.descriptor(step), i != 0 || step != 0);
    }
    wgmma_commit();
    wgmma_wait<1>();
    // After the wait the MMAs of the previous round are done in all warps of the warpgroup.
    if (i != 0 && thread == 0) mbarrier_arrive(empty + 8 * ((i - 1) % stages));
  }
  wgmma_wait<0>();
  wgmma_fence_operands(d);

  u32* result = reinterpret_cast<u32*>(results + group * 64 * row_chunks);
  const u32 row = thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
  for (u32 i = 0; i < n / 2; i += 2) {
    const u32 r = row + 8 * (i >> 1 & 1);
    result[r * 32 + ((i >> 2) ^ (r % 8)) * 4 + thread % 4] = pack<bf16>(d[i], d[i + 1]);
  }
  fence_proxy_async_shared();
  sync_named(1 + group, 128);
  if (thread == 0) {
    const auto* map = static_cast<const TensorMap*>(params.in[0]);
    tma_store_2d(map, shared_address(result), 0, static_cast<i32>(64 * group));
    bulk_commit();
    bulk_wait_read<0>();
  }
}

// Two groups of MMAs of one warpgroup with separate accumulators: the first is waited for and stored while the second is in
// flight. in[0], in[1]: [64, 64] bf16. out[0]: a·bᵀ, out[1]: b·aᵀ.
GPU_KERNEL(test_wgmma_groups, LoraTest, 128, 1) {
  using namespace test;
  using Square = Operand<64, Major::K>;
  SharedMemory shared;
  const Square a{shared.take<Chunk, 1024>(Square::bytes / 16)}, b{shared.take<Chunk, 1024>(Square::bytes / 16)};
  a.fill(in<Chunk>(params, 0));
  b.fill(in<Chunk>(params, 1));
  fence_proxy_async_shared();
  sync_block();
  float first[32], second[32];
  wgmma_fence();
#pragma unroll
  for (u32 step = 0; step < 4; step++) {
    wgmma_m64k16<bf16, 64, Major::K, Major::K>(first, a.descriptor(step), b.descriptor(step), step != 0);
  }
  wgmma_commit();
#pragma unroll
  for (u32 step = 0; step < 4; step++) {
    wgmma_m64k16<bf16, 64, Major::K, Major::K>(second, b.descriptor(step), a.descriptor(step), step != 0);
  }
  wgmma_commit();
  wgmma_wait<1>();
  wgmma_fence_operands(first);
  const u32 place = (threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4) * 64 + 2 * (threadIdx.x % 4);
  float *to_first = out<float>(params, 0) + place, *to_second = out<float>(params, 1) + place;
#pragma unroll
  for (u32 i = 0; i < 32; i++) store(to_first + 512 * (i >> 1 & 1) + 8 * (i >> 2) + (i & 1), first[i]);
  wgmma_wait<0>();
  wgmma_fence_operands(second);
#pragma unroll
  for (u32 i = 0; i < 32; i++) store(to_second + 512 * (i >> 1 & 1) + 8 * (i >> 2) + (i & 1), second[i]);
}
