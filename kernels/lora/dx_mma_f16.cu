// The gradient of a layer's input (lora/dx.h) on mma.sync for f16, small tiles, the only ones on sm_75.
//
// kernels: lora_dx_*_mma_f16_t64 lora_dx_*_mma_f16_any
//
// sass: lora_dx_*_mma_f16_t64  registers <= 168  has HMMA  has LDSM  has LDGSTS  on sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
// sass: lora_dx_*_mma_f16_*  registers <= 168  has HMMA  has LDSM
#include <lora/dx_mma.h>

DX_MMA_64(f16)
