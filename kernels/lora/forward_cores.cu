// lora_forward on CUDA cores: true f32, and 16-bit types where there is no MMA for them.
//
// kernels: lora_forward_rows_f32_* lora_forward_columns_f32_* lora_forward_rows_f16_* lora_forward_columns_f16_*
// kernels: lora_forward_rows_bf16_* lora_forward_columns_bf16_*
//
// sass: lora_forward_*_f32_t128  registers <= 216  lacks HMMA  has FFMA
// sass: lora_forward_*_f32_t64  registers <= 168  lacks HMMA  has FFMA
// sass: lora_forward_*_any  registers <= 168  lacks HMMA  has FFMA
// sass: lora_forward_*f16_t64  registers <= 168  lacks HMMA  has FFMA
#include <lora/forward_tile.h>
#include <tile/thread_tile.h>

#define FORWARD_CORES_64(E, DEPTH)                                                                       \
  FORWARD_TILE(lora_forward_rows_##E##_t64, CudaCores, E, K, 64, 32, 32, DEPTH, true, 3)             \
  FORWARD_TILE(lora_forward_rows_##E##_any, CudaCores, E, K, 64, 32, 32, DEPTH, false, 3)            \
  FORWARD_TILE(lora_forward_columns_##E##_t64, CudaCores, E, MN, 64, 32, 32, DEPTH, true, 3)        \
  FORWARD_TILE(lora_forward_columns_##E##_any, CudaCores, E, MN, 64, 32, 32, DEPTH, false, 3)

FORWARD_TILE(lora_forward_rows_f32_t128, CudaCores, f32, K, 128, 64, 32, 16, true, 1)
FORWARD_TILE(lora_forward_columns_f32_t128, CudaCores, f32, MN, 128, 64, 32, 16, true, 1)
FORWARD_CORES_64(f32, 16)
FORWARD_CORES_64(f16, 32)
FORWARD_CORES_64(bf16, 32)
