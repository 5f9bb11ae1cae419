// lora_forward on wgmma for bf16, few tokens and low ranks.
//
// targets: sm_90a
//
// sass: lora_forward_*_wgmma_bf16_m64*r  registers <= 128  has HGMMA  has UTMALDG  lacks HMMA  lacks ATOMG
// sass: lora_forward_*_wgmma_bf16_m128*r  registers <= 168  has HGMMA  has UTMALDG  lacks HMMA  lacks ATOMG
#include <lora/forward_wgmma_fused.h>

FORWARD_WGMMA_FUSED(lora_forward_rows_wgmma_bf16_m64n64r, bf16, K, K, wgmma_m64n64r)
FORWARD_WGMMA_FUSED(lora_forward_rows_wgmma_bf16_m64n128r, bf16, K, K, wgmma_m64n128r)
FORWARD_WGMMA_FUSED(lora_forward_rows_wgmma_bf16_m128n128r, bf16, K, K, wgmma_m128n128r)
FORWARD_WGMMA_FUSED(lora_forward_columns_wgmma_bf16_m64n64r, bf16, MN, K, wgmma_m64n64r)
FORWARD_WGMMA_FUSED(lora_forward_columns_wgmma_bf16_m64n128r, bf16, MN, K, wgmma_m64n128r)
FORWARD_WGMMA_FUSED(lora_forward_columns_wgmma_bf16_m128n128r, bf16, MN, K, wgmma_m128n128r)
