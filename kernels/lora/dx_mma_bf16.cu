// The gradient of a layer's input (lora/dx.h) on mma.sync for bf16, from sm_80 on.
//
// targets: sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
//
// kernels: lora_dx_*_mma_bf16_*
//
// sass: lora_dx_*_mma_bf16_t128  registers <= 128  has HMMA  has LDSM  has LDGSTS
// sass: lora_dx_*_mma_bf16_t64  registers <= 168  has HMMA  has LDSM  has LDGSTS
// sass: lora_dx_*_mma_bf16_any  registers <= 168  has HMMA  has LDSM
#include <lora/dx_mma.h>

DX_MMA_128(bf16)
DX_MMA_64(bf16)
