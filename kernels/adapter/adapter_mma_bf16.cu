// lora_adapter (adapter.h) on mma.sync for bf16, from sm_80 on, because sm_75 has no MMA for bf16.
//
// targets: sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
//
// sass: lora_adapter_mma_bf16_t64  registers <= 168  has HMMA  has LDSM  has LDGSTS
// sass: lora_adapter_mma_bf16_any  registers <= 168  has HMMA  has LDSM
#include <adapter/adapter.h>
#include <tile/warp_mma.h>

ADAPTER(lora_adapter_mma_bf16_t64, TensorCores, bf16, mma_t64)
ADAPTER(lora_adapter_mma_bf16_any, TensorCores, bf16, mma_any)
