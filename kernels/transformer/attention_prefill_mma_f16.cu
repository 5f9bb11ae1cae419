// lora_attention_prefill on mma.sync for f16.
//
// sass: lora_attention_prefill_mma_f16_*  has HMMA  has LDSM
// sass: lora_attention_prefill_mma_f16_h64_q16  registers <= 128
// sass: lora_attention_prefill_mma_f16_h64_q64  registers <= 168
// sass: lora_attention_prefill_mma_f16_*  has LDGSTS  on sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
#include <transformer/attention_prefill_mma.h>

ATTENTION_PREFILL(lora_attention_prefill_mma_f16_h32_q16, AttentionMma, f16, 32, 1, 4)
ATTENTION_PREFILL(lora_attention_prefill_mma_f16_h32_q64, AttentionMma, f16, 32, 4, 4)
ATTENTION_PREFILL(lora_attention_prefill_mma_f16_h64_q16, AttentionMma, f16, 64, 1, 4)
ATTENTION_PREFILL(lora_attention_prefill_mma_f16_h64_q64, AttentionMma, f16, 64, 4, 3)
ATTENTION_PREFILL(lora_attention_prefill_mma_f16_h96_q16, AttentionMma, f16, 96, 1, 3)
ATTENTION_PREFILL(lora_attention_prefill_mma_f16_h96_q64, AttentionMma, f16, 96, 4, 2)
ATTENTION_PREFILL(lora_attention_prefill_mma_f16_h128_q16, AttentionMma, f16, 128, 1, 3)
ATTENTION_PREFILL(lora_attention_prefill_mma_f16_h128_q64, AttentionMma, f16, 128, 4, 2)
