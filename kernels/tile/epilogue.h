// What happens to a sum before it is stored: bias, activation, residual, rounding.
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

/// The epilogue of a layer's sums: bias, activation, residual, rounding.
template <class E>
class Epilogue {
 public:
  GPU_DEVICE explicit Epilogue(const LoraForward& params)
      : p(params),
        bias_aligned(rows_are_aligned<E>(p.bias, 0)),
        aligned(rows_are_aligned<E>(p.y, p.y_stride) &&
                (p.residual == nullptr || rows_are_aligned<E>(p.residual, p.residual_stride))) {}

  /// Stores y[row, column..] for a chunk of neighbouring columns; columns that y does not have are left out.
  GPU_DEVICE void store_chunk(float (&value)[chunk_elements<E>], u32 row, u32 column) const {
    constexpr u32 elements = chunk_elements<E>;
    if (row >= p.tokens || column >= p.columns) return;
    if (p.bias) {
      float bias[elements];
      load_elements<E, Source::weight>(static_cast<const E*>(p.bias), column, p.columns, bias_aligned, bias);
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

  /// Returns y[row, column] and y[row, column + 1], rounded and packed; `column` is even. Values outside y are arbitrary.
  GPU_DEVICE u32 finish_pair(float low, float high, u32 row, u32 column) const {
    if (row >= p.tokens || column >= p.columns) return 0;
    const bool both = column + 1 < p.columns;
    // Without a bias a zero is added: if a branch changed accumulators of wgmma, ptxas would serialise the MMAs.
    float first = 0.0f, second = 0.0f;
    if (p.bias) load_pair<true>(static_cast<const E*>(p.bias) + column, both, first, second);
    float value[2] = {low + first, high + second};
    value[0] = activate(value[0], p.activation);
    value[1] = activate(value[1], p.activation);
    if (p.residual) {
      load_pair<false>(static_cast<const E*>(p.residual) + u64(row) * p.residual_stride + column, both, first, second);
      value[0] += first;
      value[1] += second;
    }
    return pack<E>(value[0], value[1]);
  }

 private:
  /// Loads two values in one access where alignment allows it; the second only if there are `both`.
  template <bool CONSTANT>
  static GPU_DEVICE void load_pair(const E* from, bool both, float& first, float& second) {
    if (both && reinterpret_cast<u64>(from) % 4 == 0) {
      const u32* pair = reinterpret_cast<const u32*>(from);
      unpack<E>(CONSTANT ? load_constant(pair) : load(pair), first, second);
    } else {
      first = to_f32(load(from));
      second = both ? to_f32(load(from + 1)) : 0.0f;
    }
  }

  const LoraForward& p;
  bool bias_aligned;
  bool aligned;
};

}  // namespace tile
