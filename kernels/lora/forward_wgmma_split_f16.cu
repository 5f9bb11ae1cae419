// lora_forward on wgmma for f16 and few tokens.
//
// targets: sm_90a
//
// sass: lora_forward_*_wgmma_f16_m64*  registers <= 128  has HGMMA  has UTMALDG  lacks HMMA
// sass: lora_forward_*_wgmma_f16_m128*  registers <= 168  has HGMMA  has UTMALDG  lacks HMMA
#include <lora/forward_wgmma_split.h>

FORWARD_WGMMA_SPLIT(lora_forward_rows_wgmma_f16_m64n64, f16, K, K, wgmma_m64n64)
FORWARD_WGMMA_SPLIT(lora_forward_rows_wgmma_f16_m64n128, f16, K, K, wgmma_m64n128)
FORWARD_WGMMA_SPLIT(lora_forward_rows_wgmma_f16_m128n128, f16, K, K, wgmma_m128n128)
FORWARD_WGMMA_SPLIT(lora_forward_columns_wgmma_f16_m64n64, f16, MN, K, wgmma_m64n64)
FORWARD_WGMMA_SPLIT(lora_forward_columns_wgmma_f16_m64n128, f16, MN, K, wgmma_m64n128)
FORWARD_WGMMA_SPLIT(lora_forward_columns_wgmma_f16_m128n128, f16, MN, K, wgmma_m128n128)
