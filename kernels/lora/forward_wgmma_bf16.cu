// lora_forward on wgmma for bf16.
//
// targets: sm_90a
//
// sass: lora_forward_*_wgmma_bf16_*  registers <= 168  has HGMMA  has UTMALDG  lacks HMMA
#include <lora/forward_wgmma.h>

using lora::ForwardWgmma;
using tile::Along;

#define FORWARD_WGMMA(LAYOUT, ALONG, TILE, COLUMNS, CTAS)                                                                  \
  GPU_KERNEL(lora_forward_##LAYOUT##_wgmma_bf16_##TILE, LoraForwardTma, LORA_FORWARD_WGMMA_THREADS, 1) {                   \
    ForwardWgmma<gpu::bf16, Along::ALONG, COLUMNS, CTAS>(params).run();                                                    \
  }

FORWARD_WGMMA(rows, Depth, n256x2, 256, 2)
FORWARD_WGMMA(rows, Depth, n256, 256, 1)
FORWARD_WGMMA(rows, Depth, n128, 128, 1)
FORWARD_WGMMA(columns, Columns, n256x2, 256, 2)
FORWARD_WGMMA(columns, Columns, n256, 256, 1)
FORWARD_WGMMA(columns, Columns, n128, 128, 1)
