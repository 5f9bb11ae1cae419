// Sums over a warp.
#pragma once

#include <gpu/warp.h>

namespace tile {

using namespace gpu;

/// Sums COUNT values (a power of two up to 32) over the 32 lanes, with COUNT - 1 + log2(32 / COUNT) shuffles. In each step a
/// lane sends half of its values to another lane and adds what it receives to the other half. In the end lane l has the
/// total of value `reduced_index<COUNT>(l)` in value[0]. The order of additions is that of a butterfly for every COUNT.
template <u32 COUNT, u32 OFFSET = warp_size / 2, u32 SIZE = COUNT>
GPU_DEVICE void reduce_transposed(float (&value)[SIZE]) {
  if constexpr (COUNT > 1) {
    const bool upper = lane_id() & OFFSET;
#pragma unroll
    for (u32 i = 0; i < COUNT / 2; i++) {
      const float low = value[i], high = value[i + COUNT / 2];
      value[i] = (upper ? high : low) + shuffle_xor(upper ? low : high, OFFSET);
    }
    if constexpr (OFFSET > 1) reduce_transposed<COUNT / 2, OFFSET / 2>(value);
  } else {
    value[0] += shuffle_xor(value[0], OFFSET);
    if constexpr (OFFSET > 1) reduce_transposed<1, OFFSET / 2>(value);
  }
}

template <u32 COUNT>
GPU_DEVICE u32 reduced_index(u32 lane) {
  u32 index = 0;
#pragma unroll
  for (u32 step = 0; step < 5; step++) {
    if (lane & (16 >> step)) index += COUNT >> (step + 1);
  }
  return index;
}

/// Whether this lane stores its total; the other lanes with the same total have the same bits.
template <u32 COUNT>
GPU_DEVICE bool holds_reduced(u32 lane) {
  return lane % (32 / COUNT) == 0;
}

/// The sum over the warp, in every lane.
GPU_DEVICE double sum_of_warp(double value) {
#pragma unroll
  for (u32 offset = warp_size / 2; offset > 0; offset /= 2) value += shuffle_xor(value, offset);
  return value;
}

}  // namespace tile
