// Causal self-attention, every head of every sequence in one launch:
//
//   out[s, i] = Σ_j p_j·v[s, j],   p = softmax_j(scale·q[s, i]·k[s, j])   over the memory's keys and the call's own, j <= i
//
// This file has what the attention kernels share: the addresses of a head's rows, the online softmax, and the merge of
// several partial softmaxes.
//
// Memory. It holds the keys and values before the call's own: a prefix, the same for every sequence, or a cache, with
// `lengths[s]` filled rows for sequence s. `lengths` is in device memory and the grid does not depend on it, so a captured
// graph can be replayed with other lengths. The call's own keys and values are read from qkv, and the CTAs that own the
// queries of these tokens append them to the cache behind the filled rows; no CTA reads a row of the cache that another one
// writes. Where the cache has no room for them, the sequence's rows of out become NaN, and its cache is neither read nor
// written.
//
// Softmax. Scores are scaled and multiplied by log2(e), so that a weight is exp2 of a score. The largest score so far is
// subtracted first, so no score that is finite in f32 overflows. The result differs from exact arithmetic by the error |δs|
// of each exponent, by the rounding of sums and, with MMA, by the rounding of each weight to the operands' type. A score
// that is +infinity or NaN makes its query's result NaN; -infinity has the weight 0.
//
// Determinism: every sum has a fixed order, which depends on the plan and the lengths and not on the schedule.
#pragma once

#include <abi.h>
#include <gpu/convert.h>
#include <gpu/math.h>
#include <gpu/memory.h>
#include <tile/elements.h>

namespace transformer {

using namespace gpu;

GPU_DEVICE float minus_infinity() { return from_bits(0xff800000); }

/// One head of one sequence. Keys are numbered from the memory's first; the first `past` keys are in the memory.
template <class E>
class AttentionHead {
 public:
  static constexpr u32 elements = chunk_elements<E>;

  GPU_DEVICE AttentionHead(const LoraAttention& params, u32 index)
      : p(params), sequence(index / p.heads), column(index % p.heads * p.head_size), width(p.heads * p.head_size) {
    past = p.capacity;
    is_cache = p.lengths != nullptr;
    if (is_cache) past = load(p.lengths + sequence);
    fits = !is_cache || (past <= p.capacity && p.tokens <= p.capacity - past);
    const bool memory_is_aligned = p.keys == nullptr || (tile::rows_are_aligned<E>(p.keys, p.keys_stride) &&
                                                         tile::rows_are_aligned<E>(p.values, p.values_stride));
    aligned = memory_is_aligned && tile::rows_are_aligned<E>(p.qkv, p.qkv_stride) && p.head_size % elements == 0;
  }

  GPU_DEVICE const E* query(u32 token) const { return own(token); }

  GPU_DEVICE const E* key(u32 j) const {
    if (j >= past) return own(j - past) + width;
    return static_cast<const E*>(p.keys) + row_of(j) * p.keys_stride + column;
  }

  GPU_DEVICE const E* value(u32 j) const {
    if (j >= past) return own(j - past) + 2 * width;
    return static_cast<const E*>(p.values) + row_of(j) * p.values_stride + column;
  }

  GPU_DEVICE E* out(u32 token) const {
    return static_cast<E*>(p.out) + (u64(sequence) * p.tokens + token) * p.out_stride + column;
  }

  /// Appends the keys and values of tokens `begin` to `end` to the cache, if there is one. All threads of the CTA call it.
  GPU_DEVICE void append(u32 begin, u32 end) const {
    if (!is_cache) return;
    if (aligned) {
      append_as<Chunk>(begin, end);
    } else {
      append_as<E>(begin, end);
    }
  }

  /// Stores NaN as the results of tokens `begin` to `end`, where the cache has no room. All threads of the CTA call it.
  GPU_DEVICE void store_nan(u32 begin, u32 end) const {
    for (u32 i = threadIdx.x; i < (end - begin) * p.head_size; i += LORA_ATTENTION_THREADS) {
      store(out(begin + i / p.head_size) + i % p.head_size, from_f32<E>(from_bits(0x7fc00000)));
    }
  }

  const LoraAttention& p;
  u32 sequence, column, width;
  /// Keys before the call's own.
  u32 past;
  bool is_cache;
  /// Whether the cache has room for the call's own keys.
  bool fits;
  /// Whether queries, keys and values can be read 16 bytes at a time.
  bool aligned;

 private:
  GPU_DEVICE const E* own(u32 token) const {
    return static_cast<const E*>(p.qkv) + (u64(sequence) * p.tokens + token) * p.qkv_stride + column;
  }

  /// The row of a key in the memory.
  GPU_DEVICE u64 row_of(u32 j) const { return (is_cache ? u64(sequence) * p.capacity : 0) + j; }

  /// `append`, one UNIT at a time.
  template <class UNIT>
  GPU_DEVICE void append_as(u32 begin, u32 end) const {
    const u32 units = p.head_size * sizeof(E) / sizeof(UNIT);
    for (u32 i = threadIdx.x; i < (end - begin) * units; i += LORA_ATTENTION_THREADS) {
      const u32 token = begin + i / units, unit = i % units;
      const u64 row = row_of(past + token);
      E* new_key = static_cast<E*>(p.keys) + row * p.keys_stride + column;
      E* new_value = static_cast<E*>(p.values) + row * p.values_stride + column;
      const E* from = own(token);
      store(reinterpret_cast<UNIT*>(new_key) + unit, load_input(reinterpret_cast<const UNIT*>(from + width) + unit));
      store(reinterpret_cast<UNIT*>(new_value) + unit,
            load_input(reinterpret_cast<const UNIT*>(from + 2 * width) + unit));
    }
  }
};

/// The online softmax of one query: the largest score so far, and the sum of weights relative to it.
struct Softmax {
  float largest = minus_infinity();
  float sum = 0.0f;

  /// What is subtracted from scores: the largest or, before any, 0, because -inf - (-inf) is NaN.
  GPU_DEVICE float reference() const { return largest == minus_infinity() ? 0.0f : largest; }

  /// Takes in further scores, of which `most` is the largest. The caller must multiply its sums so far by the result.
  GPU_DEVICE float raise_maximum(float most) {
    const float before = largest;
    largest = gpu::max(largest, most);
    const float factor = gpu::exp2(before - reference());
    sum *= factor;
    return factor;
  }

  /// The weight of a score that was taken in. The caller adds it to `sum`.
  GPU_DEVICE float weight(float score) const { return gpu::exp2(score - reference()); }
};

/// A softmax together with one column of its sum of values.
struct SoftmaxColumn {
  Softmax softmax;
  float value;
};

/// Merges the softmaxes of several parts of the keys, in their order. at(part, i) is element i of a part's record: the sums
/// of HEAD columns, the largest score, the sum of weights.
template <u32 HEAD, class At>
GPU_DEVICE SoftmaxColumn merged(u32 parts, u32 column, At&& at) {
  SoftmaxColumn all = {{}, 0.0f};
  for (u32 part = 0; part < parts; part++) all.softmax.largest = gpu::max(all.softmax.largest, at(part, HEAD));
#pragma unroll 4
  for (u32 part = 0; part < parts; part++) {
    const float factor = all.softmax.weight(at(part, HEAD));
    all.softmax.sum = gpu::fma(factor, at(part, HEAD + 1), all.softmax.sum);
    all.value = gpu::fma(factor, at(part, column), all.value);
  }
  return all;
}

}  // namespace transformer
