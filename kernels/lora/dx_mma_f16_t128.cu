// The gradient of a layer's input (lora/dx.h) on mma.sync for f16, large tiles, from sm_80 on.
//
// targets: sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
//
// sass: lora_dx_*_mma_f16_*  registers <= 128  has HMMA  has LDSM  has LDGSTS
#include <lora/forward_tile.h>
#include <tile/warp_mma.h>

FORWARD_TILE(lora_dx_rows_mma_f16_t128, TensorCores, f16, K, MN, mma_t128)
FORWARD_TILE(lora_dx_columns_mma_f16_t128, TensorCores, f16, MN, MN, mma_t128)
