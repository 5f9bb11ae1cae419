// lora_adapter (adapter.h) on mma.sync for f16.
//
// sass: lora_adapter_mma_f16_t64  registers <= 168  has HMMA  has LDSM  has LDGSTS  on sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
// sass: lora_adapter_mma_f16_t64  registers <= 168  has HMMA  has LDSM  on sm_75
// sass: lora_adapter_mma_f16_any  registers <= 168  has HMMA  has LDSM
#include <adapter/adapter.h>
#include <tile/warp_mma.h>

ADAPTER(lora_adapter_mma_f16_t64, TensorCores, f16, mma_t64)
ADAPTER(lora_adapter_mma_f16_any, TensorCores, f16, mma_any)
