// gpu/convert.h: the rounding to TF32, which targets from sm_80 on have.
//
// targets: sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
#include <gpu/convert.h>
#include <gpu/memory.h>
#include <test/test.h>

// in[0]: n[0] bit patterns of f32. out[0]: each rounded to TF32.
GPU_KERNEL(test_convert_tf32, LoraTest, 64, 1) {
  using namespace test;
  for (u32 i = threadIdx.x; i < params.n[0]; i += blockDim.x) {
    store(out<u32>(params, 0) + i, to_tf32(from_bits(load(in<u32>(params, 0) + i))));
  }
}
