// What happens to a sum on its way to memory: activation, residual, rounding.
#pragma once

#include <abi.h>
#include <gpu/convert.h>
#include <gpu/math.h>
#include <gpu/memory.h>

namespace tile {

using namespace gpu;

GPU_DEVICE float activate(float value, u32 activation) {
  if (activation == LORA_RELU) return value < 0.0f ? 0.0f : value;  // a NaN stays a NaN
  if (activation == LORA_GELU_NEW) {
    const float root_two_over_pi = 0.7978845608f;
    float inner = root_two_over_pi * gpu::fma(0.044715f * value * value, value, value);
    return 0.5f * value * (1.0f + gpu::tanh(inner));
  }
  return value;
}

/// Stores y[row, column] = activation(value) + residual[row, column]; the residual may be y itself.
template <class E>
GPU_DEVICE void finish(float value, u32 activation, const E* residual, E* y) {
  value = activate(value, activation);
  if (residual) value += to_f32(load(residual));
  store(y, from_f32<E>(value));
}

}  // namespace tile
