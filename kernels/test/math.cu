// gpu/math.h, and the conversions of f64.
#include <gpu/convert.h>
#include <gpu/math.h>
#include <gpu/memory.h>
#include <test/test.h>

// in[0]: n[0] triples of f32. out[0]: for each, fma of the three; tanh, exp2, rsqrt, sqrt, abs of the first; min and max of
// the first two.
GPU_KERNEL(test_math_floats, LoraTest, 64, 1) {
  using namespace test;
  for (u32 i = threadIdx.x; i < params.n[0]; i += blockDim.x) {
    const float* from = in<float>(params, 0) + 3 * i;
    const float a = load(from), b = load(from + 1), c = load(from + 2);
    float* to = out<float>(params, 0) + 8 * i;
    store(to + 0, gpu::fma(a, b, c));
    store(to + 1, gpu::tanh(a));
    store(to + 2, gpu::exp2(a));
    store(to + 3, gpu::rsqrt(a));
    store(to + 4, gpu::sqrt(a));
    store(to + 5, gpu::abs(a));
    store(to + 6, gpu::min(a, b));
    store(to + 7, gpu::max(a, b));
  }
}

// in[0]: n[0] f64. out[0]: for each its square root, then the value rounded to f32 and widened again.
GPU_KERNEL(test_math_doubles, LoraTest, 64, 1) {
  using namespace test;
  for (u32 i = threadIdx.x; i < params.n[0]; i += blockDim.x) {
    const double value = load(in<double>(params, 0) + i);
    store(out<double>(params, 0) + 2 * i, gpu::sqrt(value));
    store(out<double>(params, 0) + 2 * i + 1, to_f64(to_f32(value)));
  }
}

// in[0]: n[0] pairs of words. out[0]: for each min and max as u32, min and max as i32, and multiply_high.
GPU_KERNEL(test_math_integers, LoraTest, 64, 1) {
  using namespace test;
  for (u32 i = threadIdx.x; i < params.n[0]; i += blockDim.x) {
    const u32* from = in<u32>(params, 0) + 2 * i;
    const u32 a = load(from), b = load(from + 1);
    u32* to = out<u32>(params, 0) + 5 * i;
    store(to + 0, gpu::min(a, b));
    store(to + 1, gpu::max(a, b));
    store(to + 2, static_cast<u32>(gpu::min(static_cast<i32>(a), static_cast<i32>(b))));
    store(to + 3, static_cast<u32>(gpu::max(static_cast<i32>(a), static_cast<i32>(b))));
    store(to + 4, multiply_high(a, b));
  }
}
