// lora_forward on mma.sync for f16, large tiles, from sm_80 on.
//
// targets: sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
//
// kernels: lora_forward_*_mma_f16_t128
//
// sass: lora_forward_*_mma_f16_*  registers <= 128  has HMMA  has LDSM  has LDGSTS
#include <lora/forward_mma.h>

FORWARD_MMA_128(f16)
