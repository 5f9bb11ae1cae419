// Host version of kernels/gpu/mma.h.
#pragma once

#include <machine/matrix.h>

#include <gpu/types.h>

namespace gpu {

GPU_DEVICE void ldmatrix_x1(u32 (&r)[1], u32 shared_addr) { emu::load_matrix(r, 1, false, shared_addr); }
GPU_DEVICE void ldmatrix_x2(u32 (&r)[2], u32 shared_addr) { emu::load_matrix(r, 2, false, shared_addr); }
GPU_DEVICE void ldmatrix_x4(u32 (&r)[4], u32 shared_addr) { emu::load_matrix(r, 4, false, shared_addr); }
GPU_DEVICE void ldmatrix_x1_trans(u32 (&r)[1], u32 shared_addr) { emu::load_matrix(r, 1, true, shared_addr); }
GPU_DEVICE void ldmatrix_x2_trans(u32 (&r)[2], u32 shared_addr) { emu::load_matrix(r, 2, true, shared_addr); }
GPU_DEVICE void ldmatrix_x4_trans(u32 (&r)[4], u32 shared_addr) { emu::load_matrix(r, 4, true, shared_addr); }

GPU_DEVICE void stmatrix_x4(u32 shared_addr, const u32 (&r)[4]) { emu::store_matrix(r, 4, false, shared_addr); }
GPU_DEVICE void stmatrix_x4_trans(u32 shared_addr, const u32 (&r)[4]) { emu::store_matrix(r, 4, true, shared_addr); }

template <class E>
GPU_DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  static_assert(same_type<E, f16> || same_type<E, bf16>, "E must be f16 or bf16");
  if constexpr (same_type<E, f16>) {
    emu::multiply_f16(d, a, b);
  } else {
    emu::multiply_bf16(d, a, b);
  }
}

GPU_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { emu::multiply_tf32(d, a, b); }

}  // namespace gpu
