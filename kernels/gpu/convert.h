// Conversions between storage types and f32, and bit casts.
#pragma once

#include <gpu/types.h>

namespace gpu {

GPU_DEVICE u32 bits(float value) { return __float_as_uint(value); }

GPU_DEVICE float from_bits(u32 value) { return __uint_as_float(value); }

/// Picks four of the 8 bytes a (0–3) and b (4–7), by the four nibbles of `selector`, each 0 to 7.
GPU_DEVICE u32 byte_permute(u32 a, u32 b, u32 selector) { return __byte_perm(a, b, selector); }

GPU_DEVICE float to_f32(float value) { return value; }

GPU_DEVICE float to_f32(f16 value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

/// bf16 is the upper half of an f32.
GPU_DEVICE float to_f32(bf16 value) { return from_bits(u32{value.bits} << 16); }

/// Rounds to nearest even; beyond the range to infinity.
GPU_DEVICE float to_f32(double value) { return __double2float_rn(value); }

GPU_DEVICE double to_f64(float value) { return static_cast<double>(value); }

/// Rounds to nearest even; beyond the range to infinity; NaN stays NaN.
template <class E>
GPU_DEVICE E from_f32(float value) {
  static_assert(same_type<E, float> || same_type<E, f16> || same_type<E, bf16>, "storage types are f32, f16 and bf16");
  if constexpr (same_type<E, float>) {
    return value;
  } else if constexpr (same_type<E, f16>) {
    E result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
  } else {
#if GPU_TARGET >= 800
    E result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
#else
    // Adds half a unit in the last place, less one bit where the upper half is even: a tie then goes to the even neighbour.
    const u32 all = bits(value);
    const u32 rounded = (all + 0x7fff + (all >> 16 & 1)) >> 16;
    return E{static_cast<u16>(value == value ? rounded : 0x7fff)};
#endif
  }
}

#if GPU_TARGET >= 800
/// The bits of a value rounded to TF32's 10 fraction bits, to nearest, ties away from zero: the operand of an MMA in TF32.
/// Values beyond the range become infinity. The lower 13 bits of a NaN are cut, which leaves an infinity if no other
/// fraction bit is set.
GPU_DEVICE u32 to_tf32(float value) {
  u32 result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
  return result;
}
#endif

/// Two elements of a word; `low` is the one at the lower address.
template <class E>
GPU_DEVICE void unpack(u32 pair, float& low, float& high) {
  static_assert(same_type<E, f16> || same_type<E, bf16>, "a word holds two elements of 16 bits");
  if constexpr (same_type<E, f16>) {
    low = to_f32(f16{static_cast<u16>(pair)});
    high = to_f32(f16{static_cast<u16>(pair >> 16)});
  } else {
    low = from_bits(pair << 16);
    high = from_bits(pair & 0xffff0000);
  }
}

/// The inverse of `unpack`, rounding as `from_f32` does.
template <class E>
GPU_DEVICE u32 pack(float low, float high) {
  static_assert(same_type<E, f16> || same_type<E, bf16>, "a word holds two elements of 16 bits");
#if GPU_TARGET >= 800
  u32 pair;
  // The instruction takes the upper half first.
  if constexpr (same_type<E, f16>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#else
  return u32{from_f32<E>(low).bits} | u32{from_f32<E>(high).bits} << 16;
#endif
}

/// All elements of a chunk, in the order of their addresses.
template <class E>
GPU_DEVICE void unpack(Chunk chunk, float (&out)[chunk_elements<E>]) {
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    if constexpr (same_type<E, float>) {
      out[i] = from_bits(chunk.word[i]);
    } else {
      unpack<E>(chunk.word[i], out[2 * i], out[2 * i + 1]);
    }
  }
}

/// The inverse of `unpack`, rounding as `from_f32` does.
template <class E>
GPU_DEVICE Chunk pack(const float (&in)[chunk_elements<E>]) {
  Chunk chunk;
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    if constexpr (same_type<E, float>) {
      chunk.word[i] = bits(in[i]);
    } else {
      chunk.word[i] = pack<E>(in[2 * i], in[2 * i + 1]);
    }
  }
  return chunk;
}

}  // namespace gpu
