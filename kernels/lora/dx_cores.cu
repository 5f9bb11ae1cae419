// The gradient of a layer's input (lora/dx.h) on CUDA cores: true f32, and 16-bit types where there is no MMA for them.
//
// kernels: lora_dx_rows_f32_* lora_dx_columns_f32_* lora_dx_rows_f16_* lora_dx_columns_f16_* lora_dx_rows_bf16_*
// kernels: lora_dx_columns_bf16_*
//
// sass: lora_dx_*_f32_t128  registers <= 255  lacks HMMA  has FFMA
// sass: lora_dx_*_f32_t64  registers <= 168  lacks HMMA  has FFMA
// sass: lora_dx_*_any  registers <= 168  lacks HMMA  has FFMA
// sass: lora_dx_*f16_t64  registers <= 168  lacks HMMA  has FFMA
#include <lora/forward_tile.h>
#include <tile/thread_tile.h>

#define DX_CORES_64(E, DEPTH)                                                                  \
  DX_TILE(lora_dx_rows_##E##_t64, CudaCores, E, K, 64, 32, 32, DEPTH, true, 3)             \
  DX_TILE(lora_dx_rows_##E##_any, CudaCores, E, K, 64, 32, 32, DEPTH, false, 3)            \
  DX_TILE(lora_dx_columns_##E##_t64, CudaCores, E, MN, 64, 32, 32, DEPTH, true, 3)        \
  DX_TILE(lora_dx_columns_##E##_any, CudaCores, E, MN, 64, 32, 32, DEPTH, false, 3)

DX_TILE(lora_dx_rows_f32_t128, CudaCores, f32, K, 128, 64, 32, 16, true, 1)
DX_TILE(lora_dx_columns_f32_t128, CudaCores, f32, MN, 128, 64, 32, 16, true, 1)
DX_CORES_64(f32, 16)
DX_CORES_64(f16, 32)
DX_CORES_64(bf16, 32)
