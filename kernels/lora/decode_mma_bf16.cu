// lora_decode for 5 to 16 tokens with MMA: bf16, from sm_80 on, because sm_75 has no MMA for bf16.
//
// targets: sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
//
// sass: lora_decode_rows_mma_*     registers <= 128  has HMMA  has LDG.E.128
// sass: lora_decode_columns_mma_*  registers <= 128  has HMMA  has LDG.E.128  has PRMT
#include <lora/decode_columns_mma.h>
#include <lora/decode_rows_mma.h>

#define DECODE_ROWS_MMA(TILES, STEPS)                                                      \
  GPU_KERNEL(lora_decode_rows_mma_bf16_n##TILES, LoraDecode, LORA_DECODE_THREADS, 1) {      \
    lora::decode_rows_mma<gpu::bf16, TILES, STEPS>(params);                                 \
  }

DECODE_ROWS_MMA(2, 4)
DECODE_ROWS_MMA(4, 2)
DECODE_ROWS_MMA(8, 1)
DECODE_ROWS_MMA(12, 1)

GPU_KERNEL(lora_decode_columns_mma_bf16, LoraDecode, LORA_DECODE_COLUMN_MMA_THREADS, 2) {
  lora::decode_columns_mma<gpu::bf16>(params);
}
