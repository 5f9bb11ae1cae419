// The gradient of a linear layer's input, and Q, which the gradients of its adapters need, in one launch:
//
//   Q_segment = s·dy[:, begin..end] B        [tokens, rank], left in the workspace
//   dx = dy W0 + mask/(1 − p) ⊙ Σ_segments Q A + residual
//
// It is the forward kernel (lora/forward.h) with other operands: x is dy, K is d_out, the columns are d_in, W0 is in its
// other layout, T is Q. This file has what is different.
//
// Operands. The right operands B [end - begin, rank] and A [rank, d_in] are MN-major, and their rows may start anywhere: a
// rank of 3 has rows of 6 bytes. `begin` and `end` of a segment are positions along K, and B has rows for these only; every
// segment adds to all columns of dx. B counts as zeros outside its segment, so an infinity or a NaN anywhere in a row of dy
// (0·∞ is NaN) can make that row of Q and dx NaN.
//
// K steps of Q. A Q tile skips the K steps in which none of its segments has rows of B: they are neither loaded nor
// multiplied. For q and v of a fused qkv projection a third of Q's K steps are skipped. Splits keep equal depth, and a split
// without rows of a segment stores zeros.
//
// Dropout. The mask that the forward pass applied to x applies to Q·A, before Q·A is added to dx. So each step sums Q·A in
// accumulators of its own. They hold 16 rows of a warp at a time (on wgmma 64 columns, with or without dropout), so there is
// never a second set of accumulators for the whole tile.
//
// Without dx. Below the lowest adapter of a model dx is not needed. Then there are no dx tiles, and the launch reads neither
// W0 nor A.
#pragma once

#include <lora/forward.h>
#include <tile/staged.h>

namespace lora {

/// The source of one chunk of Q's columns: part of the rows of B of the one segment in which the chunk lies.
template <class E>
class ChunkOfB {
 public:
  GPU_DEVICE ChunkOfB(const LoraForward& p, u32 t_column) {
    const LoraSegment& segment = p.segments[segment_of(p, t_column)];
    b = static_cast<const E*>(segment.factors.b);
    stride = segment.factors.b_stride;
    begin = segment.begin;
    end = segment.end;
    first = t_column - segment.t_begin;
    rank = segment.factors.rank;
    aligned = tile::rows_are_aligned<E>(b, stride) && rank % chunk_elements<E> == 0;
  }

  /// Copies position `k` of K to shared memory: zeros outside the segment and beyond its rank.
  GPU_DEVICE void stage(Chunk* place, u32 k) const {
    if (aligned) {
      tile::stage_chunk<E, true>(place, row(k), first, rank, b);
    } else {
      tile::stage_chunk<E, false>(place, row(k), first, rank, b);
    }
  }

  /// Loads the same into registers. ALIGNED loads 16 bytes at a time and requires `is_aligned`.
  template <bool ALIGNED>
  GPU_DEVICE Chunk load(u32 k) const {
    return tile::load_weight<E, ALIGNED>(row(k), first, k >= begin && k < end ? rank : 0);
  }

  GPU_DEVICE bool is_aligned() const { return aligned; }

 private:
  GPU_DEVICE const E* row(u32 k) const { return k >= begin && k < end ? b + u64(k - begin) * stride : nullptr; }

  const E* b;
  u32 stride, begin, end, first, rank;
  bool aligned;
};

/// A thread's share of the copies of a Q tile's right operand into stages of DEPTH rows.
template <class E, u32 DEPTH, u32 THREADS>
class ColumnsOfB {
 public:
  static constexpr u32 chunks = LORA_FORWARD_T_COLUMNS / chunk_elements<E>, count = DEPTH * chunks / THREADS;
  static_assert(DEPTH * chunks % THREADS == 0, "every thread copies as many chunks");

  GPU_DEVICE ColumnsOfB(const LoraForward& p, u32 t_tile)
      : chunk(p, t_tile * LORA_FORWARD_T_COLUMNS + threadIdx.x % chunks * chunk_elements<E>) {}

  GPU_DEVICE void stage(Chunk* tile, u32 k) const {
#pragma unroll
    for (u32 i = 0; i < count; i++) {
      const u32 row = threadIdx.x / chunks + i * (THREADS / chunks);
      chunk.stage(tile + tile::swizzled<chunks>(row, threadIdx.x % chunks), k + row);
    }
  }

 private:
  ChunkOfB<E> chunk;
};

/// Whether a segment of a Q tile has rows of B among the DEPTH positions of K from `k` on.
template <u32 DEPTH>
GPU_DEVICE bool has_rows(const LoraForward& p, u32 t_tile, u32 k) {
  const u32 first = t_tile * LORA_FORWARD_T_COLUMNS;
  for (u32 s = 0; s < p.segment_count; s++) {
    const LoraSegment& segment = p.segments[s];
    const bool in_tile = segment.t_begin < first + LORA_FORWARD_T_COLUMNS && segment.t_begin + padded_rank(segment) > first;
    if (in_tile && segment.begin < k + DEPTH && segment.end > k) return true;
  }
  return false;
}

/// The number of values of a segment's rank, from `k` on, that a stage of DEPTH holds: whole K steps of an MMA.
template <u32 DEPTH>
GPU_DEVICE u32 rank_values(const LoraSegment& segment, u32 k) {
  return gpu::min(padded_rank(segment) - k, DEPTH);
}

/// Whether the rows of a segment's A can be copied 16 bytes at a time.
template <class E>
GPU_DEVICE bool a_is_aligned(const LoraForward& p, const LoraFactors& factors) {
  return tile::rows_are_aligned<E>(factors.a, factors.a_stride) && p.columns % chunk_elements<E> == 0;
}

/// Row `j` of a segment's A, or null where the rank was rounded up.
template <class E>
GPU_DEVICE const E* row_of_a(const LoraFactors& factors, u32 j) {
  return j < factors.rank ? static_cast<const E*>(factors.a) + u64(j) * factors.a_stride : nullptr;
}

}  // namespace lora
