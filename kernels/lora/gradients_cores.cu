// lora_gradients on CUDA cores: true f32, and 16-bit types where there is no MMA for them.
//
// sass: lora_gradients_*  registers <= 128  lacks HMMA  has FFMA
#include <lora/gradients.h>
#include <tile/outer_threads.h>

GRADIENTS(lora_gradients_f32, OuterThreads, f32)
GRADIENTS(lora_gradients_f16, OuterThreads, f16)
GRADIENTS(lora_gradients_bf16, OuterThreads, bf16)
