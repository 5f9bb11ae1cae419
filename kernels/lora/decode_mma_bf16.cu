// lora_decode for 5 to 16 tokens with MMA: bf16, from sm_80 on, because sm_75 has no MMA for bf16.
//
// targets: sm_80 sm_86 sm_89 sm_90a sm_100 sm_120
//
// sass: lora_decode_rows_mma_*     registers <= 128  has HMMA  has LDG.E.128
// sass: lora_decode_columns_mma_*  registers <= 128  has HMMA  has LDG.E.128  has PRMT
#include <lora/decode_columns_mma.h>
#include <lora/decode_rows_mma.h>

DECODE(lora_decode_rows_mma_bf16_n2, decode_rows_mma, bf16, rows_mma_n2)
DECODE(lora_decode_rows_mma_bf16_n4, decode_rows_mma, bf16, rows_mma_n4)
DECODE(lora_decode_rows_mma_bf16_n8, decode_rows_mma, bf16, rows_mma_n8)
DECODE(lora_decode_rows_mma_bf16_n12, decode_rows_mma, bf16, rows_mma_n12)
DECODE(lora_decode_columns_mma_bf16, decode_columns_mma, bf16, columns_mma)
