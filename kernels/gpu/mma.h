// MMAs of a warp, and the moves between shared memory and fragments.
//
// Addresses come from `shared_address`. All 32 lanes make the call. With g = lane / 4 and t = 2·(lane % 4), a register of A
// holds two neighbouring columns, of B two neighbouring rows, of C (d, f32) one element:
//   A, 16×16  a[i] row g + 8·(i & 1), columns t + 8·(i >> 1) + {0, 1}
//   B, 16×8   b[i] rows t + 8·i + {0, 1}, column g
//   C, 16×8   d[i] row g + 8·(i >> 1), column t + (i & 1)
#pragma once

#include <gpu/types.h>

namespace gpu {

/// Lane i gives the address of row i % 8 of matrix i / 8 (lanes without a matrix: any valid address); lane l gets row
/// l / 4, columns 2·(l % 4) + {0, 1} of each 8×8 matrix of 16-bit elements.
GPU_DEVICE void ldmatrix_x1(u32 (&r)[1], u32 shared_addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(shared_addr) : "memory");
}

GPU_DEVICE void ldmatrix_x2(u32 (&r)[2], u32 shared_addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_addr)
               : "memory");
}

GPU_DEVICE void ldmatrix_x4(u32 (&r)[4], u32 shared_addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_addr)
               : "memory");
}

/// The same with each matrix transposed: lane l gets column l / 4, rows 2·(l % 4) + {0, 1}.
GPU_DEVICE void ldmatrix_x1_trans(u32 (&r)[1], u32 shared_addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(shared_addr) : "memory");
}

GPU_DEVICE void ldmatrix_x2_trans(u32 (&r)[2], u32 shared_addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_addr)
               : "memory");
}

GPU_DEVICE void ldmatrix_x4_trans(u32 (&r)[4], u32 shared_addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_addr)
               : "memory");
}

#if GPU_TARGET >= 900
/// The inverse of `ldmatrix_x4`.
GPU_DEVICE void stmatrix_x4(u32 shared_addr, const u32 (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_addr), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

/// The inverse of `ldmatrix_x4_trans`.
GPU_DEVICE void stmatrix_x4_trans(u32 shared_addr, const u32 (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_addr), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
#endif

/// d += a·b, f32 accumulation. f16 on every target, bf16 from sm_80 on.
template <class E>
GPU_DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  static_assert(same_type<E, f16> || same_type<E, bf16>, "f16 or bf16");
#if GPU_TARGET >= 800
  if constexpr (same_type<E, f16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  static_assert(same_type<E, f16>, "sm_75 has no matrix instruction for bf16");
  // The two halves of K: registers 0, 1 of a belong to k 0–7, registers 2, 3 to k 8–15.
#pragma unroll
  for (u32 half = 0; half < 2; ++half) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  }
#endif
}

#if GPU_TARGET >= 800
/// d += a·b of f32 values rounded by `to_tf32`. Of other values the hardware cuts the lower 13 bits; the emulator refuses
/// them. With c = lane % 4: a[i] is row g + 8·(i & 1), column c + 4·(i >> 1); b[i] is row c + 4·i, column g; d as above.
GPU_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

}  // namespace gpu
