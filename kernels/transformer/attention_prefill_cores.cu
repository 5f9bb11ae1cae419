// lora_attention_prefill on CUDA cores: true f32, and 16-bit types where there is no MMA for them.
//
// kernels: lora_attention_prefill_f32_* lora_attention_prefill_f16_* lora_attention_prefill_bf16_*
//
// sass: lora_attention_prefill_*  lacks HMMA  has FFMA  has LDS.128
// sass: lora_attention_prefill_*_h64_q16  registers <= 128
// sass: lora_attention_prefill_*_h64_q64  registers <= 168
// sass: lora_attention_prefill_*  has LDGSTS  on sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
#include <transformer/attention_prefill_cores.h>

ATTENTION_CORES(f32)
ATTENTION_CORES(f16)
ATTENTION_CORES(bf16)
