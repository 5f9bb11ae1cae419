// The expand of the decode kernels: y += s·B T for the columns of one CTA, once T is complete.
//
// A row of B is read by the fewest lanes, a power of two up to a warp, that cover it with 16 bytes each, so one pass of the
// CTA takes many rows. The first chunk of B is loaded before the CTA waits for T.
#pragma once

#include <abi.h>
#include <gpu/atomic.h>
#include <gpu/block.h>
#include <gpu/shared.h>
#include <lora/shrink.h>
#include <gpu/math.h>
#include <tile/elements.h>

namespace lora {

using namespace gpu;

/// Adds to `sums[m * stride + c]` the low-rank terms of token `first_token + m` and column `first_column + c`.
template <class E, class TILE>
class Expand {
 public:
  GPU_DEVICE Expand(const LoraDecode& params, const SegmentFactors& factors, SharedMemory& shared)
      : p(params), all(factors), t(shared.take<float>(tokens * params.widest_rank)) {}

  GPU_DEVICE void run(float* sums, u32 stride, u32 first_token, u32 first_column, u32 columns, u32 epoch) {
    for (u32 s = 0; s < p.segment_count; s++) {
      const LoraSegment& segment = p.segments[s];
      const u32 begin = gpu::max(first_column, segment.begin), end = gpu::min(first_column + columns, segment.end);
      if (begin < end) add(s, sums + (begin - first_column), stride, first_token, begin, end - begin, epoch);
    }
  }

 private:
  static constexpr u32 elements = chunk_elements<E>, tokens = TILE::tokens, threads = TILE::threads;

  GPU_DEVICE void add(u32 s, float* sums, u32 stride, u32 first_token, u32 first_column, u32 columns, u32 epoch) {
    const LoraSegment& segment = p.segments[s];
    const LoraFactors& factors = all[s];
    const u32 chunks = (factors.rank + elements - 1) / elements;
    u32 lanes = 1;
    while (lanes < chunks && lanes < warp_size) lanes *= 2;
    const u32 lane = threadIdx.x % lanes, row = threadIdx.x / lanes, rows = threads / lanes;
    const E* b = static_cast<const E*>(factors.b) + u64(first_column - segment.begin) * factors.b_stride;
    const bool aligned = tile::rows_are_aligned<E>(factors.b, factors.b_stride);

    float factor[elements];
    load(factors, b, row, columns, lane, aligned, factor);
    receive(factors, segment.t_begin, first_token, epoch);
    sync_block();
    // All lanes of a warp run all passes, because of the shuffles.
    for (u32 first = 0; first < columns; first += rows) {
      const u32 column = first + row;
      float sum[tokens] = {};
      for (u32 c = lane; c < lanes * ((chunks + lanes - 1) / lanes); c += lanes) {
        if (first != 0 || c != lane) load(factors, b, column, columns, c, aligned, factor);
        if (c < chunks) multiply(factor, c * elements, sum);
      }
#pragma unroll
      for (u32 m = 0; m < tokens; m++) {
        for (u32 offset = lanes / 2; offset > 0; offset /= 2) sum[m] += shuffle_xor(sum[m], offset);
      }
      if (lane == 0 && column < columns) {
#pragma unroll
        for (u32 m = 0; m < tokens; m++) sums[m * stride + column] += sum[m];
      }
    }
    sync_block();  // the next segment overwrites `t`, and other threads read `sums`
  }

  GPU_DEVICE void load(const LoraFactors& factors, const E* b, u32 column, u32 columns, u32 chunk, bool aligned,
                       float (&factor)[elements]) {
    const u32 end = column < columns ? factors.rank : 0;
    tile::load_elements<E, tile::Source::weight>(b + u64(column) * factors.b_stride, chunk * elements, end, aligned, factor);
  }

  GPU_DEVICE void multiply(const float (&factor)[elements], u32 first, float (&sum)[tokens]) {
#pragma unroll
    for (u32 m = 0; m < tokens; m++) {
      const Chunk* values = reinterpret_cast<const Chunk*>(t + m * p.widest_rank + first);
#pragma unroll
      for (u32 i = 0; i < elements; i += 4) {
        const Chunk four = load_shared(values + i / 4);
#pragma unroll
        for (u32 e = 0; e < 4; e++) sum[m] = gpu::fma(factor[i + e], from_bits(four.word[e]), sum[m]);
      }
    }
  }

  /// Waits for the segment's part of T and stores s·T in shared memory, padded with zeros to whole chunks.
  GPU_DEVICE void receive(const LoraFactors& factors, u32 t_begin, u32 first_token, u32 epoch) {
    const u32 padded = (factors.rank + elements - 1) / elements * elements;
    for (u32 i = threadIdx.x; i < tokens * padded; i += threads) {
      const u32 m = i / padded, j = i % padded;
      float value = 0.0f;
      if (j < factors.rank && first_token + m < p.tokens) {
        const auto* place = p.t + u64(first_token + m) * p.total_rank + t_begin + j;
        u64 word;
        while (u32((word = load_relaxed(place)) >> 32) != epoch) back_off();
        value = factors.scale * from_bits(u32(word));
      }
      t[m * p.widest_rank + j] = value;
    }
  }

  const LoraDecode& p;
  SegmentFactors all;
  float* t;
};

}  // namespace lora
