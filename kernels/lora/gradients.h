// The gradients of all low-rank factors of a layer, and of its bias if asked for, in one launch:
//
//   dA [rank, d_in]          (+)= Σ_m Q[m, t_begin + j] · x̂[m, k]          Q = s·dy·B, stored by the launch of dx
//   dB [end - begin, rank]   (+)= s · Σ_m dy[m, begin + n] · T[m, packed_begin + j]
//   dbias [d_out]            (+)= Σ_m dy[m, n]
//
// dA and dB are of a segment, whose scale is s; x̂ is x, or x after dropout. T = x̂ A^T comes from the forward pass. x, dy,
// Q and T are stored in one type; gradients are f32.
//
// Who owns what. dA and dB are products of a wide operand (x or dy) and a skinny one (Q or T), summed over tokens. A CTA
// owns a panel of 256 columns of the wide operand, a block of up to 64 columns of the skinny one, and a range of tokens, a
// split. It reads its tokens once, through a ring of stages in shared memory; a warp keeps 32 × 64 sums in registers. The
// columns of the skinny operand come in steps of 16, each of one segment. For dA the steps are all columns of Q. For dB they
// are the columns of T of the segments that overlap the panel, so dy is read once even where segments overlap or meet within
// a panel. Panels begin at multiples of 256 columns, wherever segments begin; results outside a segment are not stored.
// Columns of dy outside every segment are read only if dbias is asked for: then the CTAs of the panel's first block also sum
// its columns, one per thread, from the same stages.
//
// Splits. Enough CTAs share the tokens to fill the device. Each stores its sums in the workspace; the last to arrive adds
// them in the order of the splits, writes the gradients and resets the number of arrivals, so nothing is reset from outside.
//
// Dropout. CTAs of dA zero the dropped values of x in their own stages and multiply the sums by 1/(1 - p).
//
// Bytes: x and dy once per 64 columns of rank. Q and T once per panel, which is rank / 256 of the wide operand's bytes. The
// sums of a split once out and once in, which in 16 bits is 4·rank / (tokens of a split) of the wide operand's bytes. At the
// shapes of large models panels of 256 columns minimise the sum of the last two, Q and T and the splits' sums. In flight:
// two stages of 64·(256 + rank) B per CTA. A CTA has 60 KiB of shared memory, which every target has, and registers for two
// CTAs per SM.
// Determinism: every sum has a fixed order, which depends on the plan and not on the schedule. No float atomics.
// Padding: results from columns of Q that round a rank up, from columns of T of other segments and from columns of dy
// outside the segment are computed and not stored. Tokens beyond the last are zeros in both operands.
// Alignment is tested when operands are read (tile/panel.h): rows of x, dy and T may start anywhere.
// Tried on paper and dropped: tiles of 128 × 128 (a fifth fewer bytes at a rank of 512, but twice the bytes of Q and T at a
// rank of 16); column sums of dy by MMA (8 more registers); panels that begin where their segment begins (dy is read twice
// where segments meet).
#pragma once

#include <abi.h>
#include <gpu/block.h>
#include <gpu/memory.h>
#include <gpu/shared.h>
#include <gpu/warp.h>
#include <lora/forward.h>
#include <tile/dropout.h>
#include <tile/panel.h>
#include <tile/ring.h>

namespace lora {

using namespace gpu;

/// The task of a CTA: one split of a tile of dA or dB.
struct GradientsTask {
  /// A tile of dA, or else of dB.
  bool is_a;
  u32 panel, block, split;
  /// The tile's number in the launch.
  u32 tile;

  /// The blocks of a panel have consecutive numbers, so that the panel stays in L2 from one to the next.
  static GPU_DEVICE GradientsTask of_number(const LoraGradients& p, u32 number) {
    const u32 a_tiles = p.a_panels * p.a_blocks, a_tasks = a_tiles * p.splits;
    const bool is_a = number < a_tasks;
    const u32 index = is_a ? number : number - a_tasks, blocks = is_a ? p.a_blocks : p.b_blocks;
    const u32 panel = index / (blocks * p.splits), block = index % blocks;
    return {is_a, panel, block, index / blocks % p.splits, (is_a ? 0 : a_tiles) + panel * blocks + block};
  }
};

/// The steps of 16 columns of the skinny operand whose segments overlap columns `begin` to `end` of the wide one.
struct RankSteps {
  static constexpr u32 width = LORA_FORWARD_RANK_STEP;

  const LoraGradients& p;
  u32 begin, end;

  struct Step {
    u32 segment;
    /// The step's first column, counted from the segment's first.
    u32 first;
  };

  GPU_DEVICE u32 of_segment(const LoraGradientsSegment& segment) const {
    return segment.begin < end && segment.end > begin ? (segment.rank + width - 1) / width : 0;
  }

  GPU_DEVICE u32 count() const {
    u32 steps = 0;
    for (u32 s = 0; s < p.segment_count; s++) steps += of_segment(p.segments[s]);
    return steps;
  }

  /// Step `index`, in the order of the segments.
  GPU_DEVICE Step at(u32 index) const {
    u32 segment = 0;
    for (u32 steps; index >= (steps = of_segment(p.segments[segment])); segment++) index -= steps;
    return {segment, index * width};
  }
};

/// SUMS<E, rows, columns> is what multiplies: tile::OuterMma or tile::OuterThreads.
template <template <class, u32, u32> class SUMS, class E>
class Gradients {
 public:
  static constexpr u32 panel_columns = LORA_GRADIENTS_COLUMNS, threads = LORA_GRADIENTS_COLUMNS;
  static constexpr u32 block_columns = LORA_GRADIENTS_RANKS, warp_columns = panel_columns / (threads / warp_size);
  static constexpr u32 stages = LORA_GRADIENTS_STAGES, depth = LORA_GRADIENTS_STAGE_BYTES / sizeof(E);
  static constexpr u32 elements = chunk_elements<E>, step_columns = RankSteps::width;
  static constexpr u32 wide_chunks = depth * panel_columns / elements, skinny_chunks = depth * block_columns / elements;

  GPU_DEVICE explicit Gradients(const LoraGradients& params)
      : p(params),
        task(GradientsTask::of_number(params, blockIdx.x)),
        first_column(task.panel * panel_columns),
        width(gpu::min(panel_columns, (task.is_a ? params.d_in : params.d_out) - first_column)),
        rank_steps{params, task.is_a ? 0 : first_column, task.is_a ? params.d_out : first_column + panel_columns},
        shared(),
        ring(shared.take<Chunk, 128>(stages * (wide_chunks + skinny_chunks))) {}

  GPU_DEVICE void run() {
    const u32 first_step = task.block * (block_columns / step_columns), all_steps = rank_steps.count();
    const u32 steps = first_step < all_steps ? gpu::min(all_steps - first_step, block_columns / step_columns) : 0;
    const bool adds_columns = !task.is_a && task.block == 0 && p.dbias != nullptr;
    if (steps == 0 && !adds_columns) return;

    Sums sums;
    sums.clear();
    float column_sum = 0.0f;
    stream(sums, column_sum, first_step, steps, adds_columns);
    if (p.splits != 1 && !add_splits(sums, column_sum, steps * step_columns, adds_columns)) return;
    store_factors(sums, first_step, steps);
    if (adds_columns && threadIdx.x < width) put(p.dbias + first_column + threadIdx.x, column_sum);
  }

 private:
  using Sums = SUMS<E, warp_columns, block_columns>;
  using Wide = tile::PanelColumns<E, panel_columns, depth, threads>;
  using Skinny = tile::PanelColumns<E, block_columns, depth, threads>;
  static_assert(warp_columns == 32, "8 warps");

  GPU_DEVICE Chunk* wide_stage(u32 stage) const { return ring + stage * (wide_chunks + skinny_chunks); }
  GPU_DEVICE Chunk* skinny_stage(u32 stage) const { return wide_stage(stage) + wide_chunks; }

  /// Whether the panel has columns of this warp.
  GPU_DEVICE bool has_columns() const { return warp_id() * warp_columns < width; }

  /// The main loop over this CTA's tokens.
  GPU_DEVICE void stream(Sums& sums, float& column_sum, u32 first_step, u32 steps, bool adds_columns) const {
    const u32 begin = task.split * p.split_tokens, end = gpu::min(begin + p.split_tokens, p.tokens);
    const Wide wide = wide_columns(first_step, steps, adds_columns);
    const Skinny skinny = skinny_columns(first_step, steps);
    tile::through_ring<stages>(
        (end - begin + depth - 1) / depth,
        [&](u32 step, u32 stage) {
          wide.stage(wide_stage(stage), begin + step * depth, end);
          skinny.stage(skinny_stage(stage), begin + step * depth, end);
        },
        [&](u32 step, u32 stage) {
          const u32 token = begin + step * depth;
          if (task.is_a && p.dropout.threshold != 0) {
            tile::drop_out<E, panel_columns>(p.dropout, wide_stage(stage), gpu::min(depth, end - token), token,
                                             first_column, threadIdx.x, threads);
            sync_block();
          }
          if (adds_columns) add_column(column_sum, wide_stage(stage));
          if (has_columns()) {
            sums.template multiply<depth, panel_columns, block_columns>(wide_stage(stage), warp_id() * warp_columns,
                                                                        skinny_stage(stage), steps * step_columns);
          }
        });
  }

  /// The columns of x that this thread copies, or those of dy that lie in the segment of a step or are summed for dbias.
  GPU_DEVICE Wide wide_columns(u32 first_step, u32 steps, bool adds_columns) const {
    const u32 in_panel = Wide::first_column(), column = first_column + in_panel;
    bool wanted = task.is_a || adds_columns;
    for (u32 i = 0; i < steps && !wanted; i++) {
      const LoraGradientsSegment& segment = p.segments[rank_steps.at(first_step + i).segment];
      wanted = column < segment.end && column + elements > segment.begin;
    }
    const u32 present = wanted && in_panel < width ? gpu::min(elements, width - in_panel) : 0;
    const E* base = static_cast<const E*>(task.is_a ? p.x : p.dy);
    return Wide(present != 0 ? base + column : base, task.is_a ? p.x_stride : p.dy_stride, present);
  }

  /// The columns of Q or T that this thread copies. Columns of T end with their segment.
  GPU_DEVICE Skinny skinny_columns(u32 first_step, u32 steps) const {
    const u32 column = Skinny::first_column();
    const E* base = static_cast<const E*>(task.is_a ? p.q : p.t);
    u32 first = 0, present = 0;
    if (column / step_columns < steps) {
      const auto step = rank_steps.at(first_step + column / step_columns);
      const LoraGradientsSegment& segment = p.segments[step.segment];
      const u32 j = step.first + column % step_columns;
      if (task.is_a) {
        first = segment.t_begin + j;
        present = elements;
      } else if (j < segment.rank) {
        first = segment.packed_begin + j;
        present = gpu::min(elements, segment.rank - j);
      }
    }
    return Skinny(base + first, task.is_a ? p.q_stride : p.t_stride, present);
  }

  /// Sums the rows of dy in a stage, one column per thread.
  GPU_DEVICE void add_column(float& sum, const Chunk* tile) const {
#pragma unroll 8
    for (u32 row = 0; row < depth; row++) {
      const Chunk* chunk = tile + tile::swizzled<panel_columns / elements>(row, threadIdx.x / elements);
      sum += to_f32(reinterpret_cast<const E*>(chunk)[threadIdx.x % elements]);
    }
  }

  /// Stores this CTA's sums in the workspace; the last CTA of the tile adds the sums of all splits. Returns whether this CTA
  /// is the last.
  GPU_DEVICE bool add_splits(Sums& sums, float& column_sum, u32 columns, bool adds_columns) const {
    constexpr u32 quads = Sums::sums / 4;
    Chunk* tile_sums = reinterpret_cast<Chunk*>(p.partial) + u64(task.tile) * p.splits * quads * threads;
    const SplitTile tile{tile_sums, p.arrivals + task.tile, p.splits, task.split};
    const auto quad_of = [&](u32 i) -> float* { return sums.quad(i); };
    const auto wanted = [&](u32 i) { return has_columns() && Sums::first_column_of_quad(i) < columns; };
    const bool has_sum = adds_columns && threadIdx.x < width;
    float* column_sums = p.bias_partial + u64(task.panel) * p.splits * panel_columns + threadIdx.x;

    tile.store_sums<quads>(threads, quad_of, wanted);
    if (has_sum) store(column_sums + task.split * panel_columns, column_sum);
    sync_block();
    if (!sync_block_or(threadIdx.x == 0 && tile.arrive())) return false;
    tile.add_sums<quads>(threads, quad_of, wanted);
    if (has_sum) {
      column_sum = load(column_sums);
      for (u32 s = 1; s < p.splits; s++) column_sum += load(column_sums + s * panel_columns);
    }
    return true;
  }

  /// Scales and stores the sums of a warp that belong to a segment.
  GPU_DEVICE void store_factors(const Sums& sums, u32 first_step, u32 steps) const {
    const u32 first_row = first_column + warp_id() * warp_columns;
#pragma unroll
    for (u32 i = 0; i < block_columns / step_columns; i++) {
      if (i >= steps) break;
      const auto step = rank_steps.at(first_step + i);
      const LoraGradientsSegment& segment = p.segments[step.segment];
      // Each gradient as a matrix [wide columns, rank]; dA is its transpose.
      float* gradient = task.is_a ? segment.da : segment.db;
      const u32 row_stride = task.is_a ? 1 : segment.db_stride, rank_stride = task.is_a ? segment.da_stride : 1;
      const u32 begin = task.is_a ? 0 : segment.begin, end = task.is_a ? p.d_in : segment.end;
      const float scale = task.is_a ? p.dropout.scale : segment.scale;
      sums.each_of_step(i, [&](u32 row, u32 column, float sum) {
        row += first_row;
        column += step.first;
        if (column >= segment.rank || row < begin || row >= end) return;
        put(gradient + u64(row - begin) * row_stride + u64(column) * rank_stride, scale * sum);
      });
    }
  }

  GPU_DEVICE void put(float* place, float value) const { store(place, p.accumulate ? load(place) + value : value); }

  const LoraGradients& p;
  GradientsTask task;
  u32 first_column, width;
  RankSteps rank_steps;
  SharedMemory shared;
  Chunk* ring;
};

}  // namespace lora

#define GRADIENTS(NAME, SUMS, E)                                        \
  GPU_KERNEL(NAME, LoraGradients, LORA_GRADIENTS_COLUMNS, 2) {          \
    lora::Gradients<tile::SUMS, gpu::E>(params).run();                  \
  }
