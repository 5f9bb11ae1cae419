// lora_adamw for each type of the stored copies (adamw.h): bound by memory.
//
// sass: lora_adamw_*  registers <= 80  has LDG.E.128  has STG.E.128  lacks HMMA
#include <optim/adamw.h>

#define ADAMW(NAME, E)                                                          \
  GPU_KERNEL(NAME, LoraAdamw, LORA_ADAMW_THREADS, LORA_ADAMW_CTAS) { \
    optim::Adamw<E>(params).run();                                              \
  }

ADAMW(lora_adamw_f32, float)
ADAMW(lora_adamw_f16, gpu::f16)
ADAMW(lora_adamw_bf16, gpu::bf16)
