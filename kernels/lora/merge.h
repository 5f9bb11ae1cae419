// Folding an adapter into a weight, in place or from a kept original, in one pass:
//
//   weight[i, j] = round(source[i, j] + Σ_segments s·Σ_l B[i, l] A[l, j])        W0 [out, in]
//                  round(source[i, j] + Σ_segments s·Σ_l A[l, i] B[j, l])        W0 [in, out]
//
// Who owns what. A CTA owns a tile of the weight of 64 rows by 16 chunks of 16 bytes, a thread one chunk of each of 4 rows.
// The factors pass through shared memory as f32, 32 values of the rank at a time: left[l][row], with the scale multiplied
// in, and right[l][column]. Sums are f32, and the result is rounded to the weight's type once. The largest rounding error,
// the largest change and the number of results that are not finite go to the report by atomics.
//
// Bytes: the weight once in and once out; each CTA reads its part of A and of B once, from L2. Launches: 1. In place,
// elements outside every segment are not touched, nor are tiles without a segment. Unmerging in place is the same launch
// with -s; unmerging from a kept original is a launch without segments, which copies.
#pragma once

#include <abi.h>
#include <gpu/atomic.h>
#include <gpu/block.h>
#include <gpu/math.h>
#include <gpu/shared.h>
#include <gpu/warp.h>
#include <tile/elements.h>

namespace lora {

using namespace gpu;

/// The distance |stored - (a + b)| for the exact a + b, of which `sum` is the f32 rounding.
GPU_DEVICE float rounding_error(float a, float b, float sum, float stored) {
  const float of_b = sum - a, of_a = sum - of_b;
  return gpu::abs((sum - stored) + ((a - of_a) + (b - of_b)));
}

GPU_DEVICE bool is_finite(float value) { return (bits(value) & 0x7f800000) != 0x7f800000; }

/// BY_ROWS: segments are ranges of the weight's rows (W0 [out, in]), else of its columns.
template <class E, bool BY_ROWS>
class Merge {
 public:
  static constexpr u32 elements = chunk_elements<E>, tile_rows = LORA_MERGE_ROWS;
  static constexpr u32 tile_columns = LORA_MERGE_CHUNKS * elements, panel = 32, thread_rows = 4;
  // Chunks stay aligned, and both fills have at most four lanes in one bank.
  static constexpr u32 left_stride = tile_rows + 4, right_stride = tile_columns + 4;

  GPU_DEVICE explicit Merge(const LoraMerge& params)
      : p(params),
        shared(),
        left(shared.take<float>(panel * left_stride)),
        right(shared.take<float>(panel * right_stride)),
        first_row(blockIdx.y * tile_rows),
        first_column(blockIdx.x * tile_columns) {}

  GPU_DEVICE void run() {
    const bool in_place = p.source == p.weight;
    u32 covered = in_place ? 0 : ~0u;  // a bit for each of the thread's rows, or columns, that lies in a segment
    for (u32 s = 0; s < p.segment_count; s++) {
      const LoraSegment& segment = p.segments[s];
      const u32 first = BY_ROWS ? first_row : first_column, end = first + (BY_ROWS ? tile_rows : tile_columns);
      if (segment.begin >= end || segment.end <= first) continue;
      covered |= coverage(segment);
      for (u32 l = 0; l < segment.factors.rank; l += panel) add_panel(segment, l);
    }
    float rounding = 0.0f, change = 0.0f;
    u32 not_finite = 0;
    if (covered != 0) {
#pragma unroll
      for (u32 i = 0; i < thread_rows; i++) {
        const u32 columns = BY_ROWS ? ((covered >> i & 1) ? ~0u : 0u) : covered;
        if (columns != 0 && row(i) < p.rows) store_row(i, columns, rounding, change, not_finite);
      }
    }
    tell(rounding, change, not_finite);
  }

 private:
  GPU_DEVICE u32 row(u32 i) const { return first_row + threadIdx.x / LORA_MERGE_CHUNKS * thread_rows + i; }
  GPU_DEVICE u32 column() const { return first_column + threadIdx.x % LORA_MERGE_CHUNKS * elements; }

  GPU_DEVICE u32 coverage(const LoraSegment& segment) const {
    u32 mask = 0;
#pragma unroll
    for (u32 i = 0; i < (BY_ROWS ? thread_rows : elements); i++) {
      const u32 at = BY_ROWS ? row(i) : column() + i;
      if (at >= segment.begin && at < segment.end) mask |= 1u << i;
    }
    return mask;
  }

  /// sum += left·right for values `l` to `l + panel` of the rank. All threads of the CTA call it.
  GPU_DEVICE void add_panel(const LoraSegment& segment, u32 l) {
    const LoraFactors& factors = segment.factors;
    const u32 depth = gpu::min(panel, factors.rank - l);
    sync_block();  // other threads may still read the previous panel
    if (BY_ROWS) {
      fill_from_b(segment, l, depth, left, left_stride, first_row, tile_rows, factors.scale);
      fill_from_a(factors, l, depth, right, right_stride, first_column, tile_columns, p.columns, 1.0f);
    } else {
      fill_from_a(factors, l, depth, left, left_stride, first_row, tile_rows, p.rows, factors.scale);
      fill_from_b(segment, l, depth, right, right_stride, first_column, tile_columns, 1.0f);
    }
    sync_block();
    const float* my_left = left + threadIdx.x / LORA_MERGE_CHUNKS * thread_rows;
    const float* my_right = right + threadIdx.x % LORA_MERGE_CHUNKS * elements;
    for (u32 j = 0; j < depth; j++) {
      const Chunk factors = load_shared(reinterpret_cast<const Chunk*>(my_left + j * left_stride));
#pragma unroll
      for (u32 e = 0; e < elements; e += 4) {
        const Chunk four = load_shared(reinterpret_cast<const Chunk*>(my_right + j * right_stride + e));
#pragma unroll
        for (u32 i = 0; i < thread_rows; i++) {
#pragma unroll
          for (u32 c = 0; c < 4; c++) {
            sum[i][e + c] = gpu::fma(from_bits(factors.word[i]), from_bits(four.word[c]), sum[i][e + c]);
          }
        }
      }
    }
  }

  /// to[j][i] = scale·A[l + j, first + i], zero beyond `end`.
  GPU_DEVICE void fill_from_a(const LoraFactors& factors, u32 l, u32 depth, float* to, u32 stride, u32 first, u32 count,
                              u32 end, float scale) {
    const E* a = static_cast<const E*>(factors.a) + u64(l) * factors.a_stride;
    for (u32 at = threadIdx.x; at < depth * count; at += LORA_MERGE_THREADS) {
      const u32 j = at / count, i = at % count;
      const bool inside = first + i < end;
      to[j * stride + i] = inside ? scale * to_f32(load_constant(a + u64(j) * factors.a_stride + first + i)) : 0.0f;
    }
  }

  /// to[j][i] = scale·B[first + i - begin, l + j], zero outside the segment.
  GPU_DEVICE void fill_from_b(const LoraSegment& segment, u32 l, u32 depth, float* to, u32 stride, u32 first, u32 count,
                              float scale) {
    const E* b = static_cast<const E*>(segment.factors.b) + l;
    for (u32 at = threadIdx.x; at < panel * count; at += LORA_MERGE_THREADS) {
      const u32 i = at / panel, j = at % panel, output = first + i;
      if (j >= depth) continue;
      const bool inside = output >= segment.begin && output < segment.end;
      const u64 place = u64(output - segment.begin) * segment.factors.b_stride + j;
      to[j * stride + i] = inside ? scale * to_f32(load_constant(b + place)) : 0.0f;
    }
  }

  /// Adds, rounds and stores the thread's chunk of row i: those of its columns whose bit is set in `columns`.
  GPU_DEVICE void store_row(u32 i, u32 columns, float& rounding, float& change, u32& not_finite) {
    const E* source = static_cast<const E*>(p.source) + u64(row(i)) * p.source_stride;
    E* weight = static_cast<E*>(p.weight) + u64(row(i)) * p.weight_stride;
    constexpr u32 all = (1u << elements) - 1;
    const bool whole = (columns & all) == all && column() + elements <= p.columns &&
                       tile::rows_are_aligned<E>(p.source, p.source_stride) &&
                       tile::rows_are_aligned<E>(p.weight, p.weight_stride);
    float before[elements] = {}, after[elements];
    if (whole) {
      unpack<E>(load(reinterpret_cast<const Chunk*>(source + column())), before);
    } else {
#pragma unroll
      for (u32 e = 0; e < elements; e++) {
        if ((columns >> e & 1) && column() + e < p.columns) before[e] = to_f32(load(source + column() + e));
      }
    }
#pragma unroll
    for (u32 e = 0; e < elements; e++) after[e] = before[e] + sum[i][e];
#pragma unroll
    for (u32 e = 0; e < elements; e++) {
      if (!(columns >> e & 1) || column() + e >= p.columns) continue;
      const E stored = from_f32<E>(after[e]);
      if (!whole) store(weight + column() + e, stored);
      if (is_finite(to_f32(stored))) {
        rounding = gpu::max(rounding, rounding_error(before[e], sum[i][e], after[e], to_f32(stored)));
        change = gpu::max(change, gpu::abs(sum[i][e]));
      } else {
        not_finite++;
      }
    }
    if (whole) store(reinterpret_cast<Chunk*>(weight + column()), pack<E>(after));
  }

  GPU_DEVICE void tell(float rounding, float change, u32 not_finite) {
#pragma unroll
    for (u32 offset = warp_size / 2; offset > 0; offset /= 2) {
      rounding = gpu::max(rounding, shuffle_xor(rounding, offset));
      change = gpu::max(change, shuffle_xor(change, offset));
      not_finite += shuffle_xor(not_finite, offset);
    }
    if (lane_id() != 0) return;
    if (rounding != 0.0f) fetch_max_relaxed(&p.report->largest_rounding, bits(rounding));
    if (change != 0.0f) fetch_max_relaxed(&p.report->largest_change, bits(change));
    if (not_finite != 0) fetch_add_relaxed(&p.report->not_finite, not_finite);
  }

  const LoraMerge& p;
  SharedMemory shared;
  float* left;
  float* right;
  u32 first_row, first_column;
  float sum[thread_rows][elements] = {};
};

}  // namespace lora
