// lora_adapter (adapter.h) on CUDA cores: true f32, and 16-bit types where there is no MMA for them.
//
// sass: lora_adapter_*  registers <= 168  lacks HMMA  has FFMA
#include <adapter/adapter.h>
#include <tile/thread_tile.h>

ADAPTER(lora_adapter_f32_t64, CudaCores, f32, cores_f32_t64)
ADAPTER(lora_adapter_f32_any, CudaCores, f32, cores_f32_any)
ADAPTER(lora_adapter_f16_t64, CudaCores, f16, cores_16bit_t64)
ADAPTER(lora_adapter_f16_any, CudaCores, f16, cores_16bit_any)
ADAPTER(lora_adapter_bf16_t64, CudaCores, bf16, cores_16bit_t64)
ADAPTER(lora_adapter_bf16_any, CudaCores, bf16, cores_16bit_any)
