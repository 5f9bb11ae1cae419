// lora_merge for both layouts and all types (merge.h). It is memory-bound, so it runs on CUDA cores, whose f32 sums keep the
// merged weight as exact as its type allows.
//
// sass: lora_merge_*  registers <= 128  has LDG.E.128  has STG.E.128  lacks HMMA
#include <lora/merge.h>

#define MERGE(NAME, E, BY_ROWS)                                       \
  GPU_KERNEL(NAME, LoraMerge, LORA_MERGE_THREADS, 2) {   \
    lora::Merge<E, BY_ROWS>(params).run();                            \
  }

MERGE(lora_merge_rows_f32, float, true)
MERGE(lora_merge_rows_f16, gpu::f16, true)
MERGE(lora_merge_rows_bf16, gpu::bf16, true)
MERGE(lora_merge_columns_f32, float, false)
MERGE(lora_merge_columns_f16, gpu::f16, false)
MERGE(lora_merge_columns_bf16, gpu::bf16, false)
