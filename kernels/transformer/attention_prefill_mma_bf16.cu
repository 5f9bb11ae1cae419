// lora_attention_prefill on mma.sync for bf16, from sm_80 on.
//
// targets: sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
//
// sass: lora_attention_prefill_mma_bf16_*  has HMMA  has LDSM  has LDGSTS
// sass: lora_attention_prefill_mma_bf16_h64_q16  registers <= 128
// sass: lora_attention_prefill_mma_bf16_h64_q64  registers <= 168
#include <transformer/attention_prefill_mma.h>

ATTENTION_PREFILL(lora_attention_prefill_mma_bf16_h32_q16, AttentionMma, bf16, 32, 1, 4)
ATTENTION_PREFILL(lora_attention_prefill_mma_bf16_h32_q64, AttentionMma, bf16, 32, 4, 4)
ATTENTION_PREFILL(lora_attention_prefill_mma_bf16_h64_q16, AttentionMma, bf16, 64, 1, 4)
ATTENTION_PREFILL(lora_attention_prefill_mma_bf16_h64_q64, AttentionMma, bf16, 64, 4, 3)
ATTENTION_PREFILL(lora_attention_prefill_mma_bf16_h96_q16, AttentionMma, bf16, 96, 1, 3)
ATTENTION_PREFILL(lora_attention_prefill_mma_bf16_h96_q64, AttentionMma, bf16, 96, 4, 2)
ATTENTION_PREFILL(lora_attention_prefill_mma_bf16_h128_q16, AttentionMma, bf16, 128, 1, 3)
ATTENTION_PREFILL(lora_attention_prefill_mma_bf16_h128_q64, AttentionMma, bf16, 128, 4, 2)
