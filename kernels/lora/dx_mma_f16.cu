// The gradient of a layer's input (lora/dx.h) on mma.sync for f16, small tiles, the only ones on sm_75.
//
// sass: lora_dx_*_mma_f16_t64  registers <= 168  has HMMA  has LDSM  has LDGSTS  on sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
// sass: lora_dx_*_mma_f16_*  registers <= 168  has HMMA  has LDSM
#include <lora/forward_tile.h>
#include <tile/warp_mma.h>

FORWARD_TILE(lora_dx_rows_mma_f16_t64, TensorCores, f16, K, MN, mma_t64)
FORWARD_TILE(lora_dx_columns_mma_f16_t64, TensorCores, f16, MN, MN, mma_t64)
FORWARD_TILE(lora_dx_rows_mma_f16_any, TensorCores, f16, K, MN, mma_any)
FORWARD_TILE(lora_dx_columns_mma_f16_any, TensorCores, f16, MN, MN, mma_any)
