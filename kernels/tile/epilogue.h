// What happens to a sum on its way to memory: activation, residual, rounding.
#pragma once

#include <abi.h>
#include <gpu/convert.h>
#include <gpu/math.h>
#include <gpu/memory.h>
#include <tile/elements.h>

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

/// The way out of sums of a whole chunk: bias, activation, residual, rounding.
template <class E>
class Epilogue {
 public:
  GPU_DEVICE explicit Epilogue(const LoraForward& params)
      : p(params),
        bias_aligned(rows_are_aligned<E>(p.bias, 0)),
        aligned(rows_are_aligned<E>(p.y, p.y_stride) &&
                (p.residual == nullptr || rows_are_aligned<E>(p.residual, p.residual_stride))) {}

  /// y[row, column..] for a chunk of neighbouring columns, of which those that y lacks are left out.
  GPU_DEVICE void store_chunk(float (&value)[chunk_elements<E>], u32 row, u32 column) const {
    constexpr u32 elements = chunk_elements<E>;
    if (row >= p.tokens || column >= p.columns) return;
    if (p.bias) {
      float bias[elements];
      load_elements<E>(static_cast<const E*>(p.bias), column, p.columns, bias_aligned, bias);
#pragma unroll
      for (u32 i = 0; i < elements; i++) value[i] += bias[i];
    }
    E* y = static_cast<E*>(p.y) + u64(row) * p.y_stride + column;
    const E* residual = static_cast<const E*>(p.residual);
    if (residual) residual += u64(row) * p.residual_stride + column;
    if (aligned && column + elements <= p.columns) {
#pragma unroll
      for (u32 i = 0; i < elements; i++) value[i] = activate(value[i], p.activation);
      if (residual) {
        float added[elements];
        unpack<E>(load(reinterpret_cast<const Chunk*>(residual)), added);
#pragma unroll
        for (u32 i = 0; i < elements; i++) value[i] += added[i];
      }
      store(reinterpret_cast<Chunk*>(y), pack<E>(value));
    } else {
#pragma unroll
      for (u32 i = 0; i < elements; i++) {
        if (column + i < p.columns) finish<E>(value[i], p.activation, residual ? residual + i : nullptr, y + i);
      }
    }
  }

 private:
  const LoraForward& p;
  bool bias_aligned;
  bool aligned;
};

}  // namespace tile
