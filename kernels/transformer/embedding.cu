// lora_embedding for each type (embedding.h): bound by memory.
//
// sass: lora_embedding_*  registers <= 128  has LDG.E.128  has STG.E.128  lacks HMMA
#include <transformer/embedding.h>

#define EMBEDDING(NAME, E)                                                        \
  GPU_KERNEL(NAME, LoraEmbedding, LORA_ROW_THREADS, 2) {         \
    transformer::embed<E>(params);                                                \
  }

EMBEDDING(lora_embedding_f32, float)
EMBEDDING(lora_embedding_f16, gpu::f16)
EMBEDDING(lora_embedding_bf16, gpu::bf16)
