// lora_attention_prefill on mma.sync for bf16, from sm_80 on.
//
// targets: sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
//
// kernels: lora_attention_prefill_mma_bf16_*
//
// sass: lora_attention_prefill_mma_bf16_*  has HMMA  has LDSM  has LDGSTS
// sass: lora_attention_prefill_mma_bf16_h64_q16  registers <= 128
// sass: lora_attention_prefill_mma_bf16_h64_q64  registers <= 168
#include <transformer/attention_prefill_mma.h>

ATTENTION_MMA(bf16)
