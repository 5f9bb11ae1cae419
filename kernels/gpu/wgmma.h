// Asynchronous MMAs of a warpgroup (128 threads) with operands in shared memory (sm_90a only).
//
// Order of calls: `wgmma_fence`, MMAs, `wgmma_commit`, `wgmma_wait`. From the first MMA to the wait, accumulators and A
// registers must not be accessed.
//
// With w = warp in the group, g = lane / 4 and t = 2·(lane % 4), accumulator d[i] is
//   row 16·w + g + 8·(i >> 1 & 1), column 8·(i >> 2) + t + (i & 1).
#pragma once

#include <gpu/types.h>
#include <gpu/wgmma_operands.h>

#if GPU_TARGET_IS_90A

namespace gpu {

/// The descriptor of an operand in shared memory with the 128-byte swizzle, whose pattern starts at a multiple of 1024.
///   stride_bytes   K-major: from 8 rows to the next 8, 1024 where rows of 128 bytes are packed;
///                  MN-major: from 8 values of k to the next 8
///   leading_bytes  K-major: not used; MN-major: from 64 elements of the contiguous dimension to the next 64
GPU_DEVICE u64 wgmma_descriptor(u32 shared_addr, u32 leading_bytes, u32 stride_bytes) {
  constexpr u64 swizzle_128 = u64{1} << 62;
  const u64 address = (shared_addr & 0x3ffff) >> 4;
  const u64 leading = (leading_bytes & 0x3ffff) >> 4;
  const u64 stride = (stride_bytes & 0x3ffff) >> 4;
  return address | leading << 16 | stride << 32 | swizzle_128;
}

/// Orders earlier accesses of accumulators and A registers before the MMAs after it.
GPU_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

/// Closes a group: the MMAs since the last commit.
GPU_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Waits until at most the `N` latest groups are incomplete.
template <int N>
GPU_DEVICE void wgmma_wait() {
  static_assert(N >= 0 && N <= 7, "0 to 7 groups");
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/// Emits no instruction. Keeps the compiler from moving accesses of the accumulators across this place, which must be after
/// a wait and before a fence.
template <int N>
GPU_DEVICE void wgmma_fence_operands(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// The same for A registers.
template <int N>
GPU_DEVICE void wgmma_fence_operands(u32 (&a)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

// One MMA. The predicate is false where the accumulators are overwritten. The two ones mean that no operand is negated.
#define GPU_WGMMA(N, R, TYPE, PREDICATE, OPERANDS, ...)                                                \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #PREDICATE ", 0;\n"                                \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" GPU_NAMES_##R "}, " \
               OPERANDS ";\n}"                                                                         \
               : GPU_ACCUMULATORS_##R                                                                  \
               : __VA_ARGS__)

// A and B from shared memory: operands i0 = a, i1 = b, i2 = accumulate, i3 and i4 = transpositions.
#define GPU_WGMMA_SHARED(N, R, TYPE, i0, i1, i2, i3, i4)                                           \
  GPU_WGMMA(N, R, TYPE, i2, "%" #i0 ", %" #i1 ", p, 1, 1, %" #i3 ", %" #i4, "l"(a), "l"(b), "r"(accumulate), \
            "n"(A == Major::MN), "n"(B == Major::MN))

// A from registers: operands i0 to i3 = a, i4 = b, i5 = accumulate, i6 = transposition of B.
#define GPU_WGMMA_REGISTERS(N, R, TYPE, i0, i1, i2, i3, i4, i5, i6)                                              \
  GPU_WGMMA(N, R, TYPE, i5, "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", p, 1, 1, %" #i6, "r"(a[0]), \
            "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(B == Major::MN))

/// d = a·b + (accumulate ? d : 0); A is 64×16, B is 16×N, both by descriptor. E is f16 or bf16.
template <class E, int N, Major A, Major B>
GPU_DEVICE void wgmma_m64k16(float (&d)[N / 2], u64 a, u64 b, u32 accumulate) {
  static_assert(same_type<E, f16> || same_type<E, bf16>, "f16 or bf16");
  static_assert(N >= 8 && N <= 256 && N % 8 == 0, "8 to 256 in steps of 8");
#define GPU_SHAPE(SIZE, R, i0, i1, i2, i3, i4, i5, i6)       \
  if constexpr (N == SIZE && same_type<E, f16>) {            \
    GPU_WGMMA_SHARED(SIZE, R, "f16", i0, i1, i2, i3, i4);    \
  } else if constexpr (N == SIZE) {                          \
    GPU_WGMMA_SHARED(SIZE, R, "bf16", i0, i1, i2, i3, i4);   \
  }
  GPU_WGMMA_SHAPES(GPU_SHAPE)
#undef GPU_SHAPE
}

/// The same with A in registers, each warp's 16 rows as in mma.h.
template <class E, int N, Major B>
GPU_DEVICE void wgmma_m64k16_registers(float (&d)[N / 2], const u32 (&a)[4], u64 b, u32 accumulate) {
  static_assert(same_type<E, f16> || same_type<E, bf16>, "f16 or bf16");
  static_assert(N >= 8 && N <= 256 && N % 8 == 0, "8 to 256 in steps of 8");
#define GPU_SHAPE(SIZE, R, i0, i1, i2, i3, i4, i5, i6)                \
  if constexpr (N == SIZE && same_type<E, f16>) {                     \
    GPU_WGMMA_REGISTERS(SIZE, R, "f16", i0, i1, i2, i3, i4, i5, i6);  \
  } else if constexpr (N == SIZE) {                                   \
    GPU_WGMMA_REGISTERS(SIZE, R, "bf16", i0, i1, i2, i3, i4, i5, i6); \
  }
  GPU_WGMMA_SHAPES(GPU_SHAPE)
#undef GPU_SHAPE
}

#undef GPU_WGMMA
#undef GPU_WGMMA_SHARED
#undef GPU_WGMMA_REGISTERS

}  // namespace gpu

#endif
