// A row in the registers of a few warps, with its mean and variance: which thread holds what. LayerNorm and the embedding
// share this.
//
// Who owns what. A CTA has one or several rows, each with the same number of warps. Of a row's n threads, thread i has
// chunks i, i + n, i + 2n, ... of 16 bytes; it holds LORA_ROW_ELEMENTS elements at a time, a block. A row of more elements
// than its threads hold is processed block by block. The second pass runs backwards: the last block is still in registers,
// and the others are read again.
//
// Moments. A thread first computes the mean of its block, then the squared distances from it, both from registers; Welford's
// recurrence would need a division per element for the same. The moments of blocks, then of lanes, then of warps are
// combined two at a time, as in Chan, Golub and LeVeque (1979); the block, lane or warp with the lower number is always the
// first operand. So both moments take one barrier, large squares do not cancel, and the order of the sums depends on nothing
// but the width and the number of warps: not on the alignment, the other rows, the grid or the schedule.
#pragma once

#include <abi.h>
#include <gpu/block.h>
#include <gpu/grid.h>
#include <gpu/math.h>
#include <gpu/shared.h>
#include <gpu/warp.h>
#include <tile/elements.h>

namespace transformer {

using namespace gpu;

/// The number of some values, their mean, and the sum of their squared distances from it.
struct Moments {
  float count, mean, squares;

  static GPU_DEVICE Moments of_both(const Moments& a, const Moments& b) {
    const float count = a.count + b.count;
    // If both counts are equal, no division is needed; this includes two counts of 0.
    const float share = a.count == b.count ? 0.5f : b.count / count;
    const float apart = b.mean - a.mean;
    const float squares = a.squares + b.squares + apart * (apart * (a.count * share));
    return {count, gpu::fma(apart, share, a.mean), squares};
  }

  /// The moments of this lane's values and those of lane ^ `offset` together: the same bits in both lanes.
  GPU_DEVICE Moments with_lane_across(u32 offset) const {
    const Moments other = {shuffle_xor(count, offset), shuffle_xor(mean, offset), shuffle_xor(squares, offset)};
    // Selects values, not references: the compiler keeps objects that are selected by reference in local memory.
    const bool second = lane_id() & offset;
    const Moments low = {second ? other.count : count, second ? other.mean : mean, second ? other.squares : squares};
    const Moments high = {second ? count : other.count, second ? mean : other.mean, second ? squares : other.squares};
    return of_both(low, high);
  }
};

/// E: the element type. ALIGNED: all rows start and end at multiples of 16 bytes.
template <class E, bool ALIGNED>
class Row {
 public:
  static constexpr u32 elements = chunk_elements<E>, slots = LORA_ROW_ELEMENTS / elements;
  static constexpr u32 warps = LORA_ROW_THREADS / warp_size;

  GPU_DEVICE Row(u32 rows, u32 width, u32 row_threads_log2)
      : width(width),
        log2(row_threads_log2),
        thread(threadIdx.x & ((1u << log2) - 1)),
        number(blockIdx.x * (blockDim.x >> log2) + (threadIdx.x >> log2)),
        chunks(number < rows ? (width + elements - 1) / elements : 0),
        blocks((((chunks + (1u << log2) - 1) >> log2) + slots - 1) / slots) {}

  GPU_DEVICE u32 index() const { return number; }

  /// Calls fetch(block), then use(block), block after block.
  template <class Fetch, class Use>
  GPU_DEVICE void through(Fetch&& fetch, Use&& use) {
#pragma unroll 1
    for (u32 block = 0; block < blocks; block++) {
      fetch(block);
      use(block);
    }
  }

  /// The same backwards; the last block is in registers already.
  template <class Fetch, class Use>
  GPU_DEVICE void back_through(Fetch&& fetch, Use&& use) {
#pragma unroll 1
    for (u32 block = blocks; block-- > 0;) {
      if (block + 1 != blocks) fetch(block);
      use(block);
    }
  }

  /// Calls f(slot, first element, chunk) for every chunk that this thread has of a block.
  template <class F>
  GPU_DEVICE void each(u32 block, F&& f) {
#pragma unroll
    for (u32 slot = 0; slot < slots; slot++) {
      const u32 chunk = ((block * slots + slot) << log2) + thread;
      if (chunk < chunks) f(slot, chunk * elements, held[slot]);
    }
  }

  /// Adds the moments of this thread's part of the next block to `sum`.
  GPU_DEVICE void gather(u32 block, Moments& sum) {
    const Moments more = moments(block);
    sum = block == 0 ? more : Moments::of_both(sum, more);
  }

  /// The moments of this thread's part of a block. Elements of a chunk beyond the row are zero.
  GPU_DEVICE Moments moments(u32 block) {
    float sum = 0.0f;
    u32 count = 0;
    each(block, [&](u32, u32 first, const Chunk& chunk) {
      float value[elements], part = 0.0f;
      unpack<E>(chunk, value);
#pragma unroll
      for (u32 i = 0; i < elements; i++) part += value[i];
      sum += part;
      count += gpu::min(elements, width - first);
    });
    if (count == 0) return {0.0f, 0.0f, 0.0f};
    const float mean = sum / float(count);
    float squares = 0.0f;
    each(block, [&](u32, u32 first, const Chunk& chunk) {
      float value[elements];
      unpack<E>(chunk, value);
#pragma unroll
      for (u32 i = 0; i < elements; i++) {
        const float apart = ALIGNED || first + i < width ? value[i] - mean : 0.0f;
        squares = gpu::fma(apart, apart, squares);
      }
    });
    return {float(count), mean, squares};
  }

  /// The moments of the whole row, from those of this thread's part. All threads of the CTA call it; `shared` has room for
  /// `warps` of them.
  GPU_DEVICE Moments of_row(Moments mine, Moments* shared) const {
#pragma unroll
    for (u32 offset = 1; offset < warp_size; offset *= 2) mine = mine.with_lane_across(offset);
    const u32 row_warps = (1u << log2) / warp_size;
    if (row_warps == 1) return mine;
    if (lane_id() == 0) shared[warp_id()] = mine;
    sync_block();
    mine = shared[(warp_id() & ~(row_warps - 1)) + (lane_id() & (row_warps - 1))];
#pragma unroll 1
    for (u32 offset = 1; offset < row_warps; offset *= 2) mine = mine.with_lane_across(offset);
    return mine;
  }

  /// Stores y = (x - mean)·factor·weight + bias for this thread's part of a block.
  GPU_DEVICE void normalize(u32 block, float mean, float factor, const float* weight, const float* bias, E* y) {
    each(block, [&](u32, u32 first, const Chunk& chunk) {
      float value[elements];
      unpack<E>(chunk, value);
#pragma unroll
      for (u32 four = 0; four < elements; four += 4) {
        float w[4], b[4];
        tile::load_elements<float, ALIGNED, tile::Source::weight>(weight, first + four, width, w);
        tile::load_elements<float, ALIGNED, tile::Source::weight>(bias, first + four, width, b);
#pragma unroll
        for (u32 i = 0; i < 4; i++) value[four + i] = gpu::fma((value[four + i] - mean) * factor, w[i], b[i]);
      }
      store_chunk(y, first, pack<E>(value));
    });
  }

  /// Loads a chunk of a row, which an earlier launch may have written; zeros beyond the row's end.
  GPU_DEVICE Chunk load_chunk(const E* row, u32 first) const {
    if constexpr (ALIGNED) {
      return load(reinterpret_cast<const Chunk*>(row + first));
    } else {
      float value[elements];
#pragma unroll
      for (u32 i = 0; i < elements; i++) value[i] = first + i < width ? to_f32(load(row + first + i)) : 0.0f;
      return pack<E>(value);
    }
  }

  GPU_DEVICE void store_chunk(E* row, u32 first, const Chunk& chunk) const {
    if constexpr (ALIGNED) {
      store(reinterpret_cast<Chunk*>(row + first), chunk);
    } else {
      float value[elements];
      unpack<E>(chunk, value);
#pragma unroll
      for (u32 i = 0; i < elements; i++) {
        if (first + i < width) store(row + first + i, from_f32<E>(value[i]));
      }
    }
  }

 private:
  u32 width, log2, thread, number, chunks, blocks;
  Chunk held[slots];
};

/// Whether rows of `width` that start at `base`, `stride` elements apart, consist of whole chunks.
template <class E>
GPU_DEVICE bool rows_are_chunks(const void* base, u32 stride, u32 width) {
  return tile::rows_are_aligned<E>(base, stride) && width % chunk_elements<E> == 0;
}

/// Prefetches a norm's parameters while the launch ahead still runs.
GPU_DEVICE void ask_for_norm(const float* weight, const float* bias, u32 width) {
  constexpr u32 line = 128 / sizeof(float);
  for (u32 i = line * threadIdx.x; i < width; i += line * blockDim.x) {
    prefetch_l2(weight + i);
    prefetch_l2(bias + i);
  }
}

/// 1/√(variance + ε).
GPU_DEVICE float factor_of(const Moments& row, float epsilon) { return gpu::rsqrt(row.squares / row.count + epsilon); }

}  // namespace transformer
