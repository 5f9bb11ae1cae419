// lora_layer_norm for each type (layer_norm.h): bound by memory.
//
// sass: lora_layer_norm_*  registers <= 80  has LDG.E.128  has STG.E.128  lacks HMMA
#include <transformer/layer_norm.h>

#define LAYER_NORM(NAME, E)                                                       \
  GPU_KERNEL(NAME, LoraLayerNorm, LORA_ROW_THREADS, 3) {        \
    transformer::layer_norm<E>(params);                                           \
  }

LAYER_NORM(lora_layer_norm_f32, float)
LAYER_NORM(lora_layer_norm_f16, gpu::f16)
LAYER_NORM(lora_layer_norm_bf16, gpu::bf16)
