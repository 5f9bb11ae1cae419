// The gradient of a layer's input (lora/dx.h) on mma.sync for bf16, from sm_80 on.
//
// targets: sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
//
// sass: lora_dx_*_mma_bf16_t128  registers <= 128  has HMMA  has LDSM  has LDGSTS
// sass: lora_dx_*_mma_bf16_t64  registers <= 168  has HMMA  has LDSM  has LDGSTS
// sass: lora_dx_*_mma_bf16_any  registers <= 168  has HMMA  has LDSM
#include <lora/forward_tile.h>
#include <tile/warp_mma.h>

FORWARD_TILE(lora_dx_rows_mma_bf16_t128, TensorCores, bf16, K, MN, mma_t128)
FORWARD_TILE(lora_dx_columns_mma_bf16_t128, TensorCores, bf16, MN, MN, mma_t128)
FORWARD_TILE(lora_dx_rows_mma_bf16_t64, TensorCores, bf16, K, MN, mma_t64)
FORWARD_TILE(lora_dx_columns_mma_bf16_t64, TensorCores, bf16, MN, MN, mma_t64)
FORWARD_TILE(lora_dx_rows_mma_bf16_any, TensorCores, bf16, K, MN, mma_any)
FORWARD_TILE(lora_dx_columns_mma_bf16_any, TensorCores, bf16, MN, MN, mma_any)
