// lora_forward on mma.sync for bf16, from sm_80 on, because sm_75 has no MMA for bf16.
//
// targets: sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
//
// kernels: lora_forward_*_mma_bf16_*
//
// sass: lora_forward_*_mma_bf16_t128  registers <= 128  has HMMA  has LDSM  has LDGSTS
// sass: lora_forward_*_mma_bf16_t64  registers <= 144  has HMMA  has LDSM  has LDGSTS
// sass: lora_forward_*_mma_bf16_any  registers <= 168  has HMMA  has LDSM
#include <lora/forward_mma.h>

FORWARD_MMA_128(bf16)
FORWARD_MMA_64(bf16)
