// The gradient of a layer's input (lora/dx.h) on mma.sync for f16, large tiles, from sm_80 on.
//
// targets: sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
//
// kernels: lora_dx_*_mma_f16_t128
//
// sass: lora_dx_*_mma_f16_*  registers <= 128  has HMMA  has LDSM  has LDGSTS
#include <lora/dx_mma.h>

DX_MMA_128(f16)
