// lora_attention_prefill on mma.sync for f16.
//
// kernels: lora_attention_prefill_mma_f16_*
//
// sass: lora_attention_prefill_mma_f16_*  has HMMA  has LDSM
// sass: lora_attention_prefill_mma_f16_h64_q16  registers <= 128
// sass: lora_attention_prefill_mma_f16_h64_q64  registers <= 168
// sass: lora_attention_prefill_mma_f16_*  has LDGSTS  on sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
#include <transformer/attention_prefill_mma.h>

ATTENTION_MMA(f16)
