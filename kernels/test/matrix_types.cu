// gpu/mma.h: MMAs of the types that targets from sm_80 on have.
//
// targets: sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
#include <gpu/memory.h>
#include <gpu/mma.h>
#include <test/test.h>

namespace test {

template <class F>
GPU_DEVICE void multiply(const LoraTest& p, F&& product) {
  u32 a[4], b[2];
  float d[4];
  for (u32 i = 0; i < 4; i++) a[i] = load(in<u32>(p, 0) + thread_of_grid() * 4 + i);
  for (u32 i = 0; i < 2; i++) b[i] = load(in<u32>(p, 1) + thread_of_grid() * 2 + i);
  for (u32 i = 0; i < 4; i++) d[i] = load(in<float>(p, 2) + thread_of_grid() * 4 + i);
  product(d, a, b);
  for (u32 i = 0; i < 4; i++) store(out<float>(p, 0) + thread_of_grid() * 4 + i, d[i]);
}

struct MultiplyBf16 {
  GPU_DEVICE void operator()(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) const { mma_m16n8k16<bf16>(d, a, b); }
};

struct MultiplyTf32 {
  GPU_DEVICE void operator()(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) const { mma_m16n8k8_tf32(d, a, b); }
};

}  // namespace test

// One MMA per warp. in[0], in[1], in[2]: registers of a, b, d, lane by lane. out[0]: d.
GPU_KERNEL(test_matrix_multiply_bf16, LoraTest, 32, 1) { test::multiply(params, test::MultiplyBf16()); }
GPU_KERNEL(test_matrix_multiply_tf32, LoraTest, 32, 1) { test::multiply(params, test::MultiplyTf32()); }
