// The gradient of a linear layer's input, in one launch, and on its way what the gradients of its adapters need:
//
//   Q_segment = s·dy[:, begin..end] B        [tokens, rank], left in the workspace
//   dx = dy W0 + mask/(1 − p) ⊙ Σ_segments Q A + residual
//
// It is the forward kernel (lora/forward.h) with other operands: x is dy, the depth d_out, the columns d_in, W0 lies in its
// other layout, Q is T. What is new, and is here:
//
// B [end - begin, rank] and A [rank, d_in] lie across the depth of the products that they are the right operand of, and
// their rows may start anywhere: a rank of 3 has rows of 6 bytes. `begin` and `end` of a segment count the depth, of which
// B has no more; all columns are every segment's. A step of the depth in which no segment of a tile of Q has rows is not
// fetched and not multiplied. Where a row of dy holds an infinity or a NaN, Q and dx hold a NaN.
//
// Dropout is on the way out: Q A goes to sums of its own, step by step, which the forward pass's mask of x is laid over.
// There may be no tiles of dx at all: below the lowest adapter of a model nobody wants them.
#pragma once

#include <lora/forward.h>
#include <tile/staged.h>

namespace lora {

/// Where a chunk of the columns of Q comes from: part of B's rows. It lies in one segment.
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

  /// On its way into shared memory, of depth `k`: zeros outside the segment and beyond its rank.
  GPU_DEVICE void stage(Chunk* place, u32 k) const {
    if (aligned) {
      tile::stage_chunk<E, true>(place, row(k), first, rank, b);
    } else {
      tile::stage_chunk<E, false>(place, row(k), first, rank, b);
    }
  }

  /// The same in registers, 16 bytes at a time where that `is_aligned`.
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

/// A thread's share of the right operand of a tile of Q, on its way into tiles of DEPTH rows.
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

/// Whether a segment of a tile of Q has rows among the DEPTH from `k` on.
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

/// The values of a segment's rank, from `k` on, that a stage of DEPTH holds: whole steps of the matrix instructions.
template <u32 DEPTH>
GPU_DEVICE u32 rank_values(const LoraSegment& segment, u32 k) {
  return gpu::min(padded_rank(segment) - k, DEPTH);
}

/// Whether the rows of a segment's A can be copied 16 bytes at a time.
template <class E>
GPU_DEVICE bool a_is_aligned(const LoraForward& p, const LoraFactors& factors) {
  return tile::rows_are_aligned<E>(factors.a, factors.a_stride) && p.columns % chunk_elements<E> == 0;
}

/// Value `j` of a segment's rank: a row of A, or null where the rank was rounded up.
template <class E>
GPU_DEVICE const E* row_of_a(const LoraFactors& factors, u32 j) {
  return j < factors.rank ? static_cast<const E*>(factors.a) + u64(j) * factors.a_stride : nullptr;
}

}  // namespace lora
