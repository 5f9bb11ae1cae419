// The template argument that all code of the wgmma kernels (sm_90a) shares, and the named barriers of a CTA.
#pragma once

#include <abi.h>
#include <gpu/types.h>
#include <lora/tiles.h>
#include <tile/staged.h>

namespace lora {

using namespace gpu;

/// Element type E_, f16 or bf16. WEIGHT is the contiguous dimension of W0, FACTORS that of A and B: Major::K in the forward
/// pass, Major::MN in dx (lora/dx.h). TILE is one of lora/tiles.h: each consumer warpgroup multiplies 64 of its rows; one more
/// warpgroup, the producer, fills the ring.
template <class E_, Major WEIGHT, Major FACTORS, class TILE>
struct WgmmaConfig {
  using E = E_;
  static constexpr Major weight = WEIGHT, factors = FACTORS;
  static constexpr u32 rows = TILE::rows, columns = TILE::columns, stages = TILE::stages, groups = rows / 64;
  /// CTAs of a cluster, 1 or 2, that fetch an equal share of W0's part of a stage for all of them.
  static constexpr u32 ctas = TILE::sharing;
  /// Rows of A that travel in a stage beside W0, in the kernels with a fused shrink.
  static constexpr u32 a_rows = TILE::fused_rank;
  static constexpr u32 consumer_threads = 128 * groups, threads = TILE::threads;

  /// Depth of a stage: what the 128 bytes of a swizzled row hold.
  static constexpr u32 depth = TILE::depth, row_chunks = depth / 8, row_bytes = 2 * depth;
  /// Chunks of a stage: its left operand; both operands; with rows of A beside W0.
  static constexpr u32 left_chunks = rows * row_chunks, base_chunks = left_chunks + columns * row_chunks;
  static constexpr u32 stage_chunks = base_chunks + a_rows * row_chunks;
  /// Arrivals that make a stage full: of the copy engine's thread and, where A travels along, of the warps that gather it.
  static constexpr u32 full_arrivals = a_rows == 0 ? 1 : 2;

  static constexpr u32 t_columns = LORA_FORWARD_T_COLUMNS;
  /// A tile of y in groups of 64 columns.
  static constexpr u32 parts = columns / 64;
  static_assert(threads == consumer_threads + 128 && depth == 64,
                "a producer warpgroup; a stage as deep as the swizzle is wide");
  static_assert(columns % 64 == 0 && t_columns == 64, "columns come 64 at a time");
};

/// Named barriers of a CTA: no two that threads may wait at together have one number.
struct NamedBarrier {
  /// The producer warpgroup, or those of its warps that gather A and B.
  static constexpr u32 producers = 1;
  /// All consumer warpgroups.
  static constexpr u32 consumers = 2;
  /// One consumer warpgroup over a stage that dropout has changed: this and the next number.
  static constexpr u32 stage_of_group = 3;
  /// One consumer warpgroup over a panel of y: this and the next number.
  static constexpr u32 panel_of_group = 5;
  /// Consumers and the warps that gather, over the factors: of a kernel that has no use for `stage_of_group`.
  static constexpr u32 factors = 3;
};

}  // namespace lora
