// Host version of kernels/gpu/wgmma.h.
#pragma once

#include <machine/wgmma.h>

#include <gpu/types.h>

namespace gpu {

GPU_DEVICE u64 wgmma_descriptor(u32 shared_addr, u32 leading_bytes, u32 stride_bytes) {
  return emu::wgmma_descriptor(shared_addr, leading_bytes, stride_bytes);
}

GPU_DEVICE void wgmma_fence() { emu::wgmma_fence(); }
GPU_DEVICE void wgmma_commit() { emu::wgmma_commit(); }

template <int N>
GPU_DEVICE void wgmma_wait() {
  static_assert(N >= 0 && N <= 7, "N must be 0 to 7 groups");
  emu::wgmma_wait(N);
}

template <int N>
GPU_DEVICE void wgmma_fence_operands(float (&d)[N]) {
  emu::wgmma_fence_operands(d);
}

template <int N>
GPU_DEVICE void wgmma_fence_operands(u32 (&)[N]) {}

template <class E, int N>
constexpr void check_wgmma() {
  static_assert(same_type<E, f16> || same_type<E, bf16>, "E must be f16 or bf16");
  static_assert(N >= 8 && N <= 256 && N % 8 == 0, "N must be 8 to 256 in steps of 8");
}

template <class E, int N, Major A, Major B>
GPU_DEVICE void wgmma_m64k16(float (&d)[N / 2], u64 a, u64 b, u32 accumulate) {
  check_wgmma<E, N>();
  emu::WgmmaInstruction instruction;
  instruction.a = a;
  instruction.b = b;
  instruction.a_mn_major = A == Major::MN;
  instruction.b_mn_major = B == Major::MN;
  instruction.is_bf16 = same_type<E, bf16>;
  instruction.columns = N;
  instruction.accumulate = accumulate != 0;
  emu::wgmma(instruction, d, nullptr);
}

template <class E, int N, Major B>
GPU_DEVICE void wgmma_m64k16_registers(float (&d)[N / 2], const u32 (&a)[4], u64 b, u32 accumulate) {
  check_wgmma<E, N>();
  emu::WgmmaInstruction instruction;
  instruction.b = b;
  instruction.a_in_registers = true;
  instruction.b_mn_major = B == Major::MN;
  instruction.is_bf16 = same_type<E, bf16>;
  instruction.columns = N;
  instruction.accumulate = accumulate != 0;
  emu::wgmma(instruction, d, a);
}

}  // namespace gpu
