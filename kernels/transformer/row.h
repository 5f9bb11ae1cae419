// A row in the registers of a few warps: how it is dealt out, and its mean and variance. What LayerNorm and the
// embedding share.
//
// Who owns what. A CTA has one row or several, of as many warps each; of a row, whose chunks of 16 bytes are dealt out
// to its threads in turns, a thread holds LORA_ROW_ELEMENTS elements at a time, a block. A row of more elements than
// its threads hold goes through them block by block, and is read again from the last but one block on: the last is
// still there.
//
// Moments. A thread knows its block's mean before it adds up the squares of what is left, from registers: what
// Welford's recurrence computes with a division an element. Blocks, then lanes, then warps are combined in pairs, as
// Chan, Golub and LeVeque do (1979), the part that comes first in the row's deal always first. So there is one barrier
// for both moments, no cancellation of large squares, and no order that depends on anything but the width and the
// number of warps: not on the alignment, the other rows, the grid or the schedule.
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

/// Of some values their number, their mean, and the sum of their squared distances from it.
struct Moments {
  float count, mean, squares;

  static GPU_DEVICE Moments of_both(const Moments& a, const Moments& b) {
    const float count = a.count + b.count;
    // Where both have as many there is nothing to divide; also where both have none.
    const float share = a.count == b.count ? 0.5f : b.count / count;
    const float apart = b.mean - a.mean;
    const float squares = a.squares + b.squares + apart * (apart * (a.count * share));
    return {count, gpu::fma(apart, share, a.mean), squares};
  }

  /// Of this lane's values and those of lane ^ `offset`: the same bits in both.
  GPU_DEVICE Moments with_lane_across(u32 offset) const {
    const Moments other = {shuffle_xor(count, offset), shuffle_xor(mean, offset), shuffle_xor(squares, offset)};
    // Values are chosen, not places: the compiler keeps what has a place in memory.
    const bool second = lane_id() & offset;
    const Moments low = {second ? other.count : count, second ? other.mean : mean, second ? other.squares : squares};
    const Moments high = {second ? count : other.count, second ? mean : other.mean, second ? squares : other.squares};
    return of_both(low, high);
  }
};

/// Element type E; ALIGNED promises that all rows start and end at multiples of 16 bytes.
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

  /// The same backwards, where the last block is there already.
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

  /// Adds this thread's part of a block, the next, to `sum`.
  GPU_DEVICE void gather(u32 block, Moments& sum) {
    const Moments more = moments(block);
    sum = block == 0 ? more : Moments::of_both(sum, more);
  }

  /// Of this thread's part of a block. What a chunk has beyond the row is zero.
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

  /// Those of the whole row from those of this thread's part. All threads of the CTA call it; `shared` has room for
  /// `warps`.
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
        tile::load_elements<float, ALIGNED>(weight, first + four, width, w);
        tile::load_elements<float, ALIGNED>(bias, first + four, width, b);
#pragma unroll
        for (u32 i = 0; i < 4; i++) value[four + i] = gpu::fma((value[four + i] - mean) * factor, w[i], b[i]);
      }
      store_chunk(y, first, pack<E>(value));
    });
  }

  /// A chunk of a row that an earlier launch wrote; zeros beyond the row's end.
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

/// Asks for a norm's parameters while the launch ahead still runs.
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
