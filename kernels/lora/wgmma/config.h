// What tells one kernel on wgmma (sm_90a) from another: the template argument that everything in this folder shares.
#pragma once

#include <abi.h>
#include <gpu/types.h>
#include <tile/staged.h>

namespace lora {

using namespace gpu;

/// Element type E_, f16 or bf16. WEIGHT says which way W0 lies, FACTORS which way A and B lie: Major::K in the forward pass,
/// Major::MN in that of dx (lora/dx.h).
///
/// GROUPS consumer warpgroups multiply 64 rows of a tile each; one more, the producer warpgroup, fills the ring. A tile of y
/// has COLUMNS columns, the ring STAGES stages. CTAS CTAs of a cluster, 1 or 2, fetch an equal share of W0's part of a stage
/// for all of them. A_ROWS rows of A travel in a stage beside W0 in the kernel with a fused shrink
/// (lora/forward_wgmma_fused.h).
template <class E_, Major WEIGHT, Major FACTORS, u32 GROUPS, u32 COLUMNS, u32 STAGES, u32 CTAS = 1, u32 A_ROWS = 0>
struct WgmmaConfig {
  using E = E_;
  static constexpr Major weight = WEIGHT, factors = FACTORS;
  static constexpr u32 groups = GROUPS, rows = 64 * GROUPS, columns = COLUMNS, stages = STAGES, ctas = CTAS, a_rows = A_ROWS;
  static constexpr u32 consumer_threads = 128 * GROUPS, threads = consumer_threads + 128;

  /// Depth of a stage: what the 128 bytes of a swizzled row hold.
  static constexpr u32 depth = 64, row_chunks = depth / 8, row_bytes = 2 * depth;
  /// Chunks of a stage: its left operand; both operands; with rows of A beside W0.
  static constexpr u32 left_chunks = rows * row_chunks, base_chunks = left_chunks + columns * row_chunks;
  static constexpr u32 stage_chunks = base_chunks + a_rows * row_chunks;
  /// Arrivals that make a stage full: of the copy engine's thread and, where A travels along, of the warps that gather it.
  static constexpr u32 full_arrivals = a_rows == 0 ? 1 : 2;

  static constexpr u32 t_columns = LORA_FORWARD_T_COLUMNS;
  /// A tile of y in groups of 64 columns.
  static constexpr u32 parts = columns / 64;
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
