// lora_forward on wgmma for bf16.
//
// targets: sm_90a
//
// sass: lora_forward_*_wgmma_bf16_*  registers <= 168  has HGMMA  has UTMALDG  lacks HMMA
#include <lora/forward_wgmma.h>

using lora::ForwardWgmma;
using tile::Along;

#define FORWARD_WGMMA(LAYOUT, ALONG, COLUMNS)                                                                              \
  GPU_KERNEL(lora_forward_##LAYOUT##_wgmma_bf16_n##COLUMNS, LoraForwardTma, LORA_FORWARD_WGMMA_THREADS, 1) {               \
    ForwardWgmma<gpu::bf16, Along::ALONG, Along::Depth, COLUMNS>(params).run();                                                          \
  }

FORWARD_WGMMA(rows, Depth, 256)
FORWARD_WGMMA(rows, Depth, 128)
FORWARD_WGMMA(columns, Columns, 256)
FORWARD_WGMMA(columns, Columns, 128)
