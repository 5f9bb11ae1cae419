// The gradient of a layer's input (lora/dx.h) on wgmma for bf16.
//
// targets: sm_90a
//
// sass: lora_dx_*_wgmma_bf16_*  registers <= 168  has HGMMA  has UTMALDG  lacks HMMA
#include <lora/forward_wgmma.h>

using lora::ForwardWgmma;
using tile::Along;

#define DX_WGMMA(LAYOUT, ALONG, COLUMNS)                                                                              \
  GPU_KERNEL(lora_dx_##LAYOUT##_wgmma_bf16_n##COLUMNS, LoraForwardTma, LORA_FORWARD_WGMMA_THREADS, 1) {             \
    ForwardWgmma<gpu::bf16, Along::ALONG, Along::Columns, COLUMNS>(params).run();                                      \
  }

DX_WGMMA(rows, Depth, 256)
DX_WGMMA(rows, Depth, 128)
DX_WGMMA(columns, Columns, 256)
DX_WGMMA(columns, Columns, 128)
