// The forward kernels on mma.sync, by type and size of tile.
#pragma once

#include <lora/forward_tile.h>
#include <tile/warp_mma.h>

#define FORWARD_MMA_128(E)                                                                                   \
  FORWARD_TILE(lora_forward_rows_mma_##E##_t128, TensorCores, E, K, 128, 64, 32, 32, true, 2)            \
  FORWARD_TILE(lora_forward_columns_mma_##E##_t128, TensorCores, E, MN, 128, 64, 32, 32, true, 2)

#define FORWARD_MMA_64(E)                                                                                    \
  FORWARD_TILE(lora_forward_rows_mma_##E##_t64, TensorCores, E, K, 64, 32, 32, 64, true, 3)              \
  FORWARD_TILE(lora_forward_rows_mma_##E##_any, TensorCores, E, K, 64, 32, 32, 64, false, 3)             \
  FORWARD_TILE(lora_forward_columns_mma_##E##_t64, TensorCores, E, MN, 64, 32, 32, 64, true, 3)         \
  FORWARD_TILE(lora_forward_columns_mma_##E##_any, TensorCores, E, MN, 64, 32, 32, 64, false, 3)
