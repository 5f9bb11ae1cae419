// lora_attention_prefill on CUDA cores: true f32, and 16-bit types where there is no MMA for them.
//
// sass: lora_attention_prefill_*  lacks HMMA  has FFMA  has LDS.128
// sass: lora_attention_prefill_*_h64_q16  registers <= 128
// sass: lora_attention_prefill_*_h64_q64  registers <= 168
// sass: lora_attention_prefill_*  has LDGSTS  on sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
#include <transformer/attention_prefill_cores.h>

ATTENTION_PREFILL(lora_attention_prefill_f32_h64_q16, AttentionCores, f32, 64, 1, 4)
ATTENTION_PREFILL(lora_attention_prefill_f32_h64_q64, AttentionCores, f32, 64, 4, 3)
ATTENTION_PREFILL(lora_attention_prefill_f32_h128_q16, AttentionCores, f32, 128, 1, 3)
ATTENTION_PREFILL(lora_attention_prefill_f32_h128_q64, AttentionCores, f32, 128, 4, 2)
ATTENTION_PREFILL(lora_attention_prefill_f16_h64_q16, AttentionCores, f16, 64, 1, 4)
ATTENTION_PREFILL(lora_attention_prefill_f16_h64_q64, AttentionCores, f16, 64, 4, 3)
ATTENTION_PREFILL(lora_attention_prefill_f16_h128_q16, AttentionCores, f16, 128, 1, 3)
ATTENTION_PREFILL(lora_attention_prefill_f16_h128_q64, AttentionCores, f16, 128, 4, 2)
ATTENTION_PREFILL(lora_attention_prefill_bf16_h64_q16, AttentionCores, bf16, 64, 1, 4)
ATTENTION_PREFILL(lora_attention_prefill_bf16_h64_q64, AttentionCores, bf16, 64, 4, 3)
ATTENTION_PREFILL(lora_attention_prefill_bf16_h128_q16, AttentionCores, bf16, 128, 1, 3)
ATTENTION_PREFILL(lora_attention_prefill_bf16_h128_q64, AttentionCores, bf16, 128, 4, 2)
