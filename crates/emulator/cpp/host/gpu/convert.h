// Host version of kernels/gpu/convert.h.
#pragma once

#include <cstring>

#include <gpu/types.h>

namespace gpu {

GPU_DEVICE u32 bits(float value) {
  u32 word;
  memcpy(&word, &value, sizeof word);
  return word;
}

GPU_DEVICE float from_bits(u32 word) {
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

GPU_DEVICE float to_f32(float value) { return value; }

GPU_DEVICE float to_f32(bf16 value) { return from_bits(u32(value.bits) << 16); }

GPU_DEVICE float to_f32(f16 value) {
  u32 sign = u32(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fff;
  if (magnitude >= 0x7c00) return from_bits(sign | 0x7f800000 | magnitude << 13);  // infinity, NaN
  // In the fields of f32 the exponent is 112 too small, for subnormals as well.
  return from_bits(sign | bits(from_bits(magnitude << 13) * 0x1p112f));
}

GPU_DEVICE float to_f32(double value) { return static_cast<float>(value); }

GPU_DEVICE double to_f64(float value) { return value; }

template <class E>
GPU_DEVICE E from_f32(float value);

template <>
GPU_DEVICE float from_f32<float>(float value) {
  return value;
}

template <>
GPU_DEVICE bf16 from_f32<bf16>(float value) {
  u32 word = bits(value);
  if ((word & 0x7fffffff) > 0x7f800000) return {0x7fff};
  return {u16((word + 0x7fff + (word >> 16 & 1)) >> 16)};
}

template <>
GPU_DEVICE f16 from_f32<f16>(float value) {
  u32 word = bits(value), sign = word >> 16 & 0x8000, magnitude = word & 0x7fffffff;
  if (magnitude > 0x7f800000) return {0x7fff};
  if (magnitude >= 0x477ff000) return {u16(sign | 0x7c00)};  // rounds to 65536 or more
  if (magnitude < 0x38800000) {
    // Subnormal: the addition of 0.5 rounds the value to steps of 2^-24, which are then in the low bits.
    return {u16(sign | (bits(from_bits(magnitude) + 0.5f) - bits(0.5f)))};
  }
  return {u16(sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13)};
}

GPU_DEVICE u32 to_tf32(float value) {
  u32 word = bits(value);
  if ((word & 0x7fffffff) < 0x7f800000) word += 0x1000;  // a carry out of the fraction increments the exponent
  return word & ~0x1fffu;
}

template <class E>
GPU_DEVICE void unpack(u32 pair, float& low, float& high) {
  low = to_f32(E{u16(pair)});
  high = to_f32(E{u16(pair >> 16)});
}

template <class E>
GPU_DEVICE u32 pack(float low, float high) {
  return from_f32<E>(low).bits | u32(from_f32<E>(high).bits) << 16;
}

template <class E>
GPU_DEVICE void unpack(Chunk chunk, float (&out)[chunk_elements<E>]) {
  for (int i = 0; i < 4; i++) {
    if constexpr (same_type<E, float>) {
      out[i] = from_bits(chunk.word[i]);
    } else {
      unpack<E>(chunk.word[i], out[2 * i], out[2 * i + 1]);
    }
  }
}

template <class E>
GPU_DEVICE Chunk pack(const float (&in)[chunk_elements<E>]) {
  Chunk chunk;
  for (int i = 0; i < 4; i++) {
    if constexpr (same_type<E, float>) {
      chunk.word[i] = bits(in[i]);
    } else {
      chunk.word[i] = pack<E>(in[2 * i], in[2 * i + 1]);
    }
  }
  return chunk;
}

GPU_DEVICE u32 byte_permute(u32 a, u32 b, u32 selector) {
  u64 source = u64(b) << 32 | a;
  u32 result = 0;
  for (int i = 0; i < 4; i++) {
    u32 nibble = selector >> 4 * i & 15;
    u32 byte = u32(source >> 8 * (nibble & 7)) & 0xff;
    if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign, replicated
    result |= byte << 8 * i;
  }
  return result;
}

}  // namespace gpu
