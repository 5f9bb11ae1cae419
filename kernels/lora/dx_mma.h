// The kernels of dx on mma.sync, by type and size of tile.
#pragma once

#include <lora/forward_tile.h>
#include <tile/warp_mma.h>

#define DX_MMA_128(E)                                                                               \
  DX_TILE(lora_dx_rows_mma_##E##_t128, TensorCores, E, K, 128, 64, 32, 32, true, 2)             \
  DX_TILE(lora_dx_columns_mma_##E##_t128, TensorCores, E, MN, 128, 64, 32, 32, true, 2)

#define DX_MMA_64(E)                                                                                \
  DX_TILE(lora_dx_rows_mma_##E##_t64, TensorCores, E, K, 64, 32, 32, 64, true, 3)               \
  DX_TILE(lora_dx_rows_mma_##E##_any, TensorCores, E, K, 64, 32, 32, 64, false, 3)              \
  DX_TILE(lora_dx_columns_mma_##E##_t64, TensorCores, E, MN, 64, 32, 32, 64, true, 3)          \
  DX_TILE(lora_dx_columns_mma_##E##_any, TensorCores, E, MN, 64, 32, 32, 64, false, 3)
