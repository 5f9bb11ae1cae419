// gpu/wgmma.h: one warpgroup, one tile of 64 × N × 64.
//
// targets: sm_90a
#include <gpu/block.h>
#include <gpu/mbarrier.h>
#include <test/operand.h>

namespace test {

// The place of this thread's first accumulator in [64, N]; the others lie at fixed distances from it.
template <u32 N>
GPU_DEVICE u32 first_accumulator() {
  return (threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4) * N + 2 * (threadIdx.x % 4);
}

// n[0]: whether the product is added to in[2]. n[1]: whether operands come by TMA (maps[0], maps[1]) instead of plain stores
// (in[0], in[1]). out[0]: [64, N].
template <u32 N>
GPU_DEVICE void load_accumulators(const LoraTest& p, float (&d)[N / 2]) {
  const float* from = in<float>(p, 2) + first_accumulator<N>();
#pragma unroll
  for (u32 i = 0; i < N / 2; i++) d[i] = load(from + 8 * (i >> 1 & 1) * N + 8 * (i >> 2) + (i & 1));
}

template <u32 N>
GPU_DEVICE void store_accumulators(const LoraTest& p, const float (&d)[N / 2]) {
  float* to = out<float>(p, 0) + first_accumulator<N>();
#pragma unroll
  for (u32 i = 0; i < N / 2; i++) store(to + 8 * (i >> 1 & 1) * N + 8 * (i >> 2) + (i & 1), d[i]);
}

template <class A, class B>
GPU_DEVICE void fill(const LoraTest& p, const A* a, const B& b, u64* place) {
  if (p.n[1] == 0) {
    if (a) a->fill(in<Chunk>(p, 0));
    b.fill(in<Chunk>(p, 1));
    fence_proxy_async_shared();
    sync_block();
    return;
  }
  const u32 barrier = shared_address(place);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect(barrier, (a ? A::bytes : 0) + B::bytes);
    if (a) a->fetch(&p.maps[0], barrier, 0, 0);
    b.fetch(&p.maps[1], barrier, 0, 0);
  }
  sync_block();
  mbarrier_wait(barrier, 0);
}

template <class E, u32 N, Major A, Major B>
GPU_DEVICE void product(const LoraTest& p) {
  SharedMemory shared;
  const Operand<64, A> a{shared.take<Chunk, 1024>(Operand<64, A>::bytes / 16)};
  const Operand<N, B> b{shared.take<Chunk, 1024>(Operand<N, B>::bytes / 16)};
  fill(p, &a, b, shared.take<u64>(1));
  float d[N / 2];
  load_accumulators<N>(p, d);
  wgmma_fence_operands(d);
  wgmma_fence();
#pragma unroll
  for (u32 step = 0; step < 4; step++) {
    wgmma_m64k16<E, N, A, B>(d, a.descriptor(step), b.descriptor(step), step != 0 || p.n[0] != 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_fence_operands(d);
  store_accumulators<N>(p, d);
}

template <class E, u32 N, Major B>
GPU_DEVICE void product_of_registers(const LoraTest& p) {
  SharedMemory shared;
  const Operand<N, B> b{shared.take<Chunk, 1024>(Operand<N, B>::bytes / 16)};
  fill(p, static_cast<const Operand<N, B>*>(nullptr), b, shared.take<u64>(1));
  float d[N / 2];
  load_accumulators<N>(p, d);
  u32 a[4][4];
  const u32 row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, pair = threadIdx.x % 4;
#pragma unroll
  for (u32 step = 0; step < 4; step++) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      a[step][i] = load(in<u32>(p, 0) + (row + 8 * (i & 1)) * (tile_depth / 2) + 8 * step + 4 * (i >> 1) + pair);
    }
  }
  wgmma_fence_operands(d);
  wgmma_fence();
#pragma unroll
  for (u32 step = 0; step < 4; step++) {
    wgmma_m64k16_registers<E, N, B>(d, a[step], b.descriptor(step), step != 0 || p.n[0] != 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_fence_operands(d);
  store_accumulators<N>(p, d);
}

}  // namespace test

#define PRODUCT(NAME, E, N, A, B) \
  GPU_KERNEL(NAME, LoraTest, 128, 1) { test::product<gpu::E, N, gpu::Major::A, gpu::Major::B>(params); }
#define PRODUCT_OF_REGISTERS(NAME, E, N, B) \
  GPU_KERNEL(NAME, LoraTest, 128, 1) { test::product_of_registers<gpu::E, N, gpu::Major::B>(params); }

// The letters: A K-major, MN-major, or in registers; B K-major or MN-major.
PRODUCT(test_wgmma_bf16_8_kk, bf16, 8, K, K)
PRODUCT(test_wgmma_bf16_16_kk, bf16, 16, K, K)
PRODUCT(test_wgmma_f16_64_kk, f16, 64, K, K)
PRODUCT(test_wgmma_bf16_96_kk, bf16, 96, K, K)
PRODUCT(test_wgmma_bf16_128_kk, bf16, 128, K, K)
PRODUCT(test_wgmma_f16_256_kk, f16, 256, K, K)
PRODUCT(test_wgmma_bf16_64_km, bf16, 64, K, MN)
PRODUCT(test_wgmma_f16_128_km, f16, 128, K, MN)
PRODUCT(test_wgmma_bf16_256_km, bf16, 256, K, MN)
PRODUCT(test_wgmma_bf16_96_km, bf16, 96, K, MN)
PRODUCT(test_wgmma_f16_16_mk, f16, 16, MN, K)
PRODUCT(test_wgmma_bf16_64_mk, bf16, 64, MN, K)
PRODUCT(test_wgmma_bf16_64_mm, bf16, 64, MN, MN)
PRODUCT(test_wgmma_f16_128_mm, f16, 128, MN, MN)
PRODUCT_OF_REGISTERS(test_wgmma_bf16_8_rk, bf16, 8, K)
PRODUCT_OF_REGISTERS(test_wgmma_f16_96_rk, f16, 96, K)
PRODUCT_OF_REGISTERS(test_wgmma_bf16_128_rk, bf16, 128, K)
PRODUCT_OF_REGISTERS(test_wgmma_f16_64_rm, f16, 64, MN)
PRODUCT_OF_REGISTERS(test_wgmma_bf16_256_rm, bf16, 256, MN)
