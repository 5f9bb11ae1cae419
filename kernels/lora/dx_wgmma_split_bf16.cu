// The gradient of a layer's input (lora/dx.h) on wgmma for bf16 and few tokens.
//
// targets: sm_90a
//
// kernels: lora_dx_*_wgmma_bf16_m*
//
// sass: lora_dx_*_wgmma_bf16_m64*  registers <= 128  has HGMMA  has UTMALDG  lacks HMMA
// sass: lora_dx_*_wgmma_bf16_m128*  registers <= 168  has HGMMA  has UTMALDG  lacks HMMA
#include <lora/forward_wgmma_split.h>

FORWARD_WGMMA_SPLIT(dx, MN, bf16)
