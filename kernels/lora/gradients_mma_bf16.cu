// lora_gradients on mma.sync for bf16, from sm_80 on, because sm_75 has no MMA for bf16.
//
// targets: sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
//
// sass: lora_gradients_mma_bf16  registers <= 128  has HMMA  has LDSM  has LDGSTS
#include <lora/gradients.h>
#include <tile/outer_mma.h>

GRADIENTS(lora_gradients_mma_bf16, OuterMma, bf16)
