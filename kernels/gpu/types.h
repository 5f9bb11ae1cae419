// Integer names, storage types, and the 16 bytes that a thread moves at a time.
#pragma once

#include <gpu/platform.h>

namespace gpu {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;
using f32 = float;

/// IEEE 754 binary16 as stored; arithmetic is always f32.
struct f16 {
  u16 bits;
};

/// bfloat16 as stored: binary32 with the lower 16 bits cut.
struct bf16 {
  u16 bits;
};

/// 16 bytes: the widest access of one thread. Holds 4 f32 or 8 values of 16 bits.
struct alignas(16) Chunk {
  u32 word[4];
};

/// Which dimension of an operand of a matrix product is contiguous in memory: K, the one that is summed over, or the other.
enum class Major { K, MN };

/// Elements of `E` in a chunk.
template <class E>
constexpr u32 chunk_elements = 16 / sizeof(E);

template <class A, class B>
constexpr bool same_type = false;
template <class A>
constexpr bool same_type<A, A> = true;

}  // namespace gpu
