// lora_forward on mma.sync for f32 in TF32: x, W0, A, T and B are rounded to 10 fraction bits on their way into the
// products, to nearest, and summed up in f32. Only for who asks for it by name.
//
// Each rounding is off by u = 2^-11 of its value at most, so y by 2u·(Σ|x||w| + |s|·Σ(Σ|x||a|)|B| + Σ|s·T||B|), beside what
// the f32 kernels are off by.
//
// Bytes are those of the f32 kernels; a stage is half as deep as one of 16 bits, and as large.
//
// targets: sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
//
// kernels: lora_forward_*_mma_tf32_*
//
// sass: lora_forward_*_mma_tf32_t128  registers <= 128  has HMMA.1688.F32.TF32  has LDSM  has LDGSTS  lacks LD.E
// sass: lora_forward_*_mma_tf32_t64  registers <= 144  has HMMA.1688.F32.TF32  has LDSM  has LDGSTS  lacks LD.E
// sass: lora_forward_*_mma_tf32_any  registers <= 168  has HMMA.1688.F32.TF32  has LDSM  lacks LD.E
#include <lora/forward_tile.h>
#include <tile/warp_mma_tf32.h>

FORWARD_TILE(lora_forward_rows_mma_tf32_t128, Tf32TensorCores, f32, K, 128, 32, 64, 16, true, 2)
FORWARD_TILE(lora_forward_rows_mma_tf32_t64, Tf32TensorCores, f32, K, 64, 32, 32, 32, true, 3)
FORWARD_TILE(lora_forward_rows_mma_tf32_any, Tf32TensorCores, f32, K, 64, 32, 32, 32, false, 3)
FORWARD_TILE(lora_forward_columns_mma_tf32_t128, Tf32TensorCores, f32, MN, 128, 32, 64, 16, true, 2)
FORWARD_TILE(lora_forward_columns_mma_tf32_t64, Tf32TensorCores, f32, MN, 64, 32, 32, 32, true, 3)
FORWARD_TILE(lora_forward_columns_mma_tf32_any, Tf32TensorCores, f32, MN, 64, 32, 32, 32, false, 3)
