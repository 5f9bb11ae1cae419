// The gradient of a layer's input (lora/dx.h) on wgmma for bf16 and many tokens.
//
// targets: sm_90a
//
// sass: lora_dx_*_wgmma_bf16_n*  registers <= 168  has HGMMA  has UTMALDG  has UTMASTG  lacks HMMA
#include <lora/forward_wgmma.h>

FORWARD_WGMMA(lora_dx_rows_wgmma_bf16_n256x2, bf16, K, MN, wgmma_n256x2)
FORWARD_WGMMA(lora_dx_rows_wgmma_bf16_n256, bf16, K, MN, wgmma_n256)
FORWARD_WGMMA(lora_dx_rows_wgmma_bf16_n128, bf16, K, MN, wgmma_n128)
FORWARD_WGMMA(lora_dx_columns_wgmma_bf16_n256x2, bf16, MN, MN, wgmma_n256x2)
FORWARD_WGMMA(lora_dx_columns_wgmma_bf16_n256, bf16, MN, MN, wgmma_n256)
FORWARD_WGMMA(lora_dx_columns_wgmma_bf16_n128, bf16, MN, MN, wgmma_n128)
