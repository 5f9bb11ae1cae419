// lora_forward on wgmma for f16 and many tokens.
//
// targets: sm_90a
//
// sass: lora_forward_*_wgmma_f16_n*  registers <= 168  has HGMMA  has UTMALDG  has UTMASTG  lacks HMMA
#include <lora/forward_wgmma.h>

FORWARD_WGMMA(lora_forward_rows_wgmma_f16_n256x2, f16, K, K, wgmma_n256x2)
FORWARD_WGMMA(lora_forward_rows_wgmma_f16_n256, f16, K, K, wgmma_n256)
FORWARD_WGMMA(lora_forward_rows_wgmma_f16_n128, f16, K, K, wgmma_n128)
FORWARD_WGMMA(lora_forward_columns_wgmma_f16_n256x2, f16, MN, K, wgmma_n256x2)
FORWARD_WGMMA(lora_forward_columns_wgmma_f16_n256, f16, MN, K, wgmma_n256)
FORWARD_WGMMA(lora_forward_columns_wgmma_f16_n128, f16, MN, K, wgmma_n128)
