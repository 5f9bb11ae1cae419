// The gradient of a layer's input (lora/dx.h) on wgmma for bf16 and few tokens.
//
// targets: sm_90a
//
// sass: lora_dx_*_wgmma_bf16_m64*  registers <= 128  has HGMMA  has UTMALDG  lacks HMMA
// sass: lora_dx_*_wgmma_bf16_m128*  registers <= 168  has HGMMA  has UTMALDG  lacks HMMA
#include <lora/forward_wgmma_split.h>

FORWARD_WGMMA_SPLIT(lora_dx_rows_wgmma_bf16_m64n64, bf16, K, MN, wgmma_m64n64)
FORWARD_WGMMA_SPLIT(lora_dx_rows_wgmma_bf16_m64n128, bf16, K, MN, wgmma_m64n128)
FORWARD_WGMMA_SPLIT(lora_dx_rows_wgmma_bf16_m128n128, bf16, K, MN, wgmma_m128n128)
FORWARD_WGMMA_SPLIT(lora_dx_columns_wgmma_bf16_m64n64, bf16, MN, MN, wgmma_m64n64)
FORWARD_WGMMA_SPLIT(lora_dx_columns_wgmma_bf16_m64n128, bf16, MN, MN, wgmma_m64n128)
FORWARD_WGMMA_SPLIT(lora_dx_columns_wgmma_bf16_m128n128, bf16, MN, MN, wgmma_m128n128)
