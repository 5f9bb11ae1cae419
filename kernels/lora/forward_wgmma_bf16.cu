// lora_forward on wgmma for bf16 and many tokens.
//
// targets: sm_90a
//
// sass: lora_forward_*_wgmma_bf16_n*  registers <= 168  has HGMMA  has UTMALDG  has UTMASTG  lacks HMMA
#include <lora/forward_wgmma.h>

FORWARD_WGMMA(lora_forward_rows_wgmma_bf16_n256x2, bf16, K, K, wgmma_n256x2)
FORWARD_WGMMA(lora_forward_rows_wgmma_bf16_n256, bf16, K, K, wgmma_n256)
FORWARD_WGMMA(lora_forward_rows_wgmma_bf16_n128, bf16, K, K, wgmma_n128)
FORWARD_WGMMA(lora_forward_columns_wgmma_bf16_n256x2, bf16, MN, K, wgmma_n256x2)
FORWARD_WGMMA(lora_forward_columns_wgmma_bf16_n256, bf16, MN, K, wgmma_n256)
FORWARD_WGMMA(lora_forward_columns_wgmma_bf16_n128, bf16, MN, K, wgmma_n128)
