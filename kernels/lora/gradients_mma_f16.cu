// lora_gradients on mma.sync for f16.
//
// sass: lora_gradients_mma_f16  registers <= 128  has HMMA  has LDSM
// sass: lora_gradients_mma_f16  has LDGSTS  on sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
#include <lora/gradients.h>
#include <tile/outer_mma.h>

GRADIENTS(lora_gradients_mma_f16, OuterMma, f16)
