// The gradient of a layer's input (lora/dx.h) on wgmma for bf16 and many tokens.
//
// targets: sm_90a
//
// kernels: lora_dx_*_wgmma_bf16_n*
//
// sass: lora_dx_*_wgmma_bf16_n*  registers <= 168  has HGMMA  has UTMALDG  has UTMASTG  lacks HMMA
#include <lora/forward_wgmma.h>

FORWARD_WGMMA(dx, MN, bf16)
