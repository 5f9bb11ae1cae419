// The gradient of a layer's input (lora/dx.h) on wgmma for f16 and many tokens.
//
// targets: sm_90a
//
// sass: lora_dx_*_wgmma_f16_n*  registers <= 168  has HGMMA  has UTMALDG  has UTMASTG  lacks HMMA
#include <lora/forward_wgmma.h>

FORWARD_WGMMA(lora_dx_rows_wgmma_f16_n256x2, f16, K, MN, wgmma_n256x2)
FORWARD_WGMMA(lora_dx_rows_wgmma_f16_n256, f16, K, MN, wgmma_n256)
FORWARD_WGMMA(lora_dx_rows_wgmma_f16_n128, f16, K, MN, wgmma_n128)
FORWARD_WGMMA(lora_dx_columns_wgmma_f16_n256x2, f16, MN, MN, wgmma_n256x2)
FORWARD_WGMMA(lora_dx_columns_wgmma_f16_n256, f16, MN, MN, wgmma_n256)
FORWARD_WGMMA(lora_dx_columns_wgmma_f16_n128, f16, MN, MN, wgmma_n128)
