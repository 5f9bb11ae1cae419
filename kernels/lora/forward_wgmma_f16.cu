// lora_forward on wgmma for f16 and many tokens.
//
// targets: sm_90a
//
// kernels: lora_forward_*_wgmma_f16_n*
//
// sass: lora_forward_*_wgmma_f16_n*  registers <= 168  has HGMMA  has UTMALDG  has UTMASTG  lacks HMMA
#include <lora/forward_wgmma.h>

FORWARD_WGMMA(forward, K, f16)
