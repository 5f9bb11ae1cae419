// The gradient of a layer's input (lora/dx.h) on CUDA cores: true f32, and 16-bit types where there is no MMA for them.
//
// sass: lora_dx_*_f32_t128  registers <= 255  lacks HMMA  has FFMA
// sass: lora_dx_*_f32_t64  registers <= 168  lacks HMMA  has FFMA
// sass: lora_dx_*_any  registers <= 168  lacks HMMA  has FFMA
// sass: lora_dx_*f16_t64  registers <= 168  lacks HMMA  has FFMA
#include <lora/forward_tile.h>
#include <tile/thread_tile.h>

FORWARD_TILE(lora_dx_rows_f32_t128, CudaCores, f32, K, MN, cores_f32_t128)
FORWARD_TILE(lora_dx_columns_f32_t128, CudaCores, f32, MN, MN, cores_f32_t128)
FORWARD_TILE(lora_dx_rows_f32_t64, CudaCores, f32, K, MN, cores_f32_t64)
FORWARD_TILE(lora_dx_columns_f32_t64, CudaCores, f32, MN, MN, cores_f32_t64)
FORWARD_TILE(lora_dx_rows_f32_any, CudaCores, f32, K, MN, cores_f32_any)
FORWARD_TILE(lora_dx_columns_f32_any, CudaCores, f32, MN, MN, cores_f32_any)
FORWARD_TILE(lora_dx_rows_f16_t64, CudaCores, f16, K, MN, cores_16bit_t64)
FORWARD_TILE(lora_dx_columns_f16_t64, CudaCores, f16, MN, MN, cores_16bit_t64)
FORWARD_TILE(lora_dx_rows_f16_any, CudaCores, f16, K, MN, cores_16bit_any)
FORWARD_TILE(lora_dx_columns_f16_any, CudaCores, f16, MN, MN, cores_16bit_any)
FORWARD_TILE(lora_dx_rows_bf16_t64, CudaCores, bf16, K, MN, cores_16bit_t64)
FORWARD_TILE(lora_dx_columns_bf16_t64, CudaCores, bf16, MN, MN, cores_16bit_t64)
FORWARD_TILE(lora_dx_rows_bf16_any, CudaCores, bf16, K, MN, cores_16bit_any)
FORWARD_TILE(lora_dx_columns_bf16_any, CudaCores, bf16, MN, MN, cores_16bit_any)
