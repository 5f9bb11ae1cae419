// lora_forward on wgmma for f16 and few tokens.
//
// targets: sm_90a
//
// kernels: lora_forward_*_wgmma_f16_m*
//
// sass: lora_forward_*_wgmma_f16_m64*  registers <= 128  has HGMMA  has UTMALDG  lacks HMMA
// sass: lora_forward_*_wgmma_f16_m128*  registers <= 168  has HGMMA  has UTMALDG  lacks HMMA
#include <lora/forward_wgmma_split.h>

FORWARD_WGMMA_SPLIT(forward, K, f16)
