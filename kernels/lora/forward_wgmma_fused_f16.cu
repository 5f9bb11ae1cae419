// lora_forward on wgmma for f16, few tokens and low ranks.
//
// targets: sm_90a
//
// kernels: lora_forward_*_wgmma_f16_m*r
//
// sass: lora_forward_*_wgmma_f16_m64*r  registers <= 128  has HGMMA  has UTMALDG  lacks HMMA  lacks ATOMG
// sass: lora_forward_*_wgmma_f16_m128*r  registers <= 168  has HGMMA  has UTMALDG  lacks HMMA  lacks ATOMG
#include <lora/forward_wgmma_fused.h>

FORWARD_WGMMA_FUSED(f16)
