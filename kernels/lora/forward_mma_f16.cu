// lora_forward on mma.sync for f16, small tiles. sm_75 has no others: its copies pass through registers, of which larger
// tiles leave too few.
//
// sass: lora_forward_*_mma_f16_t64  registers <= 144  has HMMA  has LDSM  has LDGSTS  on sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
// sass: lora_forward_*_mma_f16_t64  registers <= 168  has HMMA  has LDSM  on sm_75
// sass: lora_forward_*_mma_f16_any  registers <= 168  has HMMA  has LDSM
#include <lora/forward_tile.h>
#include <tile/warp_mma.h>

FORWARD_TILE(lora_forward_rows_mma_f16_t64, TensorCores, f16, K, K, mma_t64)
FORWARD_TILE(lora_forward_columns_mma_f16_t64, TensorCores, f16, MN, K, mma_t64)
FORWARD_TILE(lora_forward_rows_mma_f16_any, TensorCores, f16, K, K, mma_any)
FORWARD_TILE(lora_forward_columns_mma_f16_any, TensorCores, f16, MN, K, mma_any)
