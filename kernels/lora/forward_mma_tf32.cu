// lora_forward on mma.sync for f32 in TF32: x, W0, A, T and B are rounded to nearest, to 10 fraction bits, before they are
// multiplied; sums are f32. It runs only if the caller asks for TF32.
//
// Each rounding changes a value by at most u = 2^-11 of it. This adds at most 2u·(Σ|x||w| + |s|·Σ(Σ|x||a|)|B| + Σ|s·T||B|)
// to the error of y with the f32 kernels.
//
// Bytes: those of the f32 kernels. A stage holds half the K of a stage of 16-bit values, in the same bytes.
//
// targets: sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
//
// sass: lora_forward_*_mma_tf32_t128  registers <= 128  has HMMA.1688.F32.TF32  has LDSM  has LDGSTS  lacks LD.E
// sass: lora_forward_*_mma_tf32_t64  registers <= 144  has HMMA.1688.F32.TF32  has LDSM  has LDGSTS  lacks LD.E
// sass: lora_forward_*_mma_tf32_any  registers <= 168  has HMMA.1688.F32.TF32  has LDSM  lacks LD.E
#include <lora/forward_tile.h>
#include <tile/warp_mma_tf32.h>

FORWARD_TILE(lora_forward_rows_mma_tf32_t128, Tf32TensorCores, f32, K, K, mma_tf32_t128)
FORWARD_TILE(lora_forward_columns_mma_tf32_t128, Tf32TensorCores, f32, MN, K, mma_tf32_t128)
FORWARD_TILE(lora_forward_rows_mma_tf32_t64, Tf32TensorCores, f32, K, K, mma_tf32_t64)
FORWARD_TILE(lora_forward_columns_mma_tf32_t64, Tf32TensorCores, f32, MN, K, mma_tf32_t64)
FORWARD_TILE(lora_forward_rows_mma_tf32_any, Tf32TensorCores, f32, K, K, mma_tf32_any)
FORWARD_TILE(lora_forward_columns_mma_tf32_any, Tf32TensorCores, f32, MN, K, mma_tf32_any)
