// lora_attention_decode: one query per sequence. attention.h says what is computed.
//
// Who owns what. A CTA owns a range of one head's keys, a split. A group of lanes, one per chunk of a padded row, shares a
// key: each lane loads 16 bytes of the key and of its value into registers, for four keys at once, and owns the same columns
// of the query and of the sums. With G groups each group takes every G-th key and has a softmax of its own; these are merged
// in their order through shared memory.
//
// Splits. Where there are few heads, several CTAs share the keys of one: each stores its record in the workspace, and the
// last to arrive merges all records in the order of the splits and resets the number of arrivals. How many splits have keys
// follows from the cache's length, which every CTA reads: CTAs without keys exit at once and are not waited for. The split
// that has the sequence's own key appends it.
//
// Grid: x = heads of all sequences, y = splits of a memory that is filled to its capacity. Launches: 1. Nothing is allocated
// or reset.
// Bytes: every key and value once, which is the floor. A split's record is written and read once, in f32 1 / split_keys of
// these bytes.
// In flight: 128 threads × 8 × 16 B, 16 KiB per CTA.
// Determinism: every sum has a fixed order, which depends on the plan and the length and not on the schedule.
//
// sass: lora_attention_decode_*  registers <= 128  has LDG.E.128  lacks HMMA
#include <gpu/atomic.h>
#include <gpu/block.h>
#include <gpu/grid.h>
#include <gpu/shared.h>
#include <gpu/warp.h>
#include <transformer/attention.h>

namespace transformer {

template <class E, u32 HEAD>
class AttentionDecode {
 public:
  static constexpr u32 threads = LORA_ATTENTION_THREADS, elements = chunk_elements<E>, lanes = HEAD / elements;
  static constexpr u32 groups = threads / lanes, in_flight = 4;
  /// Sums of values, then the largest score and the sum of weights.
  static constexpr u32 record = HEAD + LORA_ATTENTION_STATS;
  static_assert(lanes <= warp_size && warp_size % lanes == 0, "lanes of one warp share a key");
  static_assert(HEAD <= threads, "a thread merges one column");

  GPU_DEVICE explicit AttentionDecode(const LoraAttention& params)
      : p(params),
        head(params, blockIdx.x),
        column(threadIdx.x % lanes * elements),
        shared(),
        records(shared.take<float>(groups * record)) {
#pragma unroll
    for (u32 i = 0; i < elements; i++) sum[i] = 0.0f;
  }

  GPU_DEVICE void run() {
    const u32 split = blockIdx.y;
    if (!head.fits) {
      if (split == 0) head.store_nan(0, 1);
      return;
    }
    const u32 keys = head.past + 1, parts = (keys + p.split_keys - 1) / p.split_keys;
    if (split >= parts) return;
    const u32 begin = split * p.split_keys, end = gpu::min(begin + p.split_keys, keys);
    if (end == keys) head.append(0, 1);
    if (head.aligned) {
      attend<true>(begin, end);
    } else {
      attend<false>(begin, end);
    }
    store_record();
    sync_block();
    const u32 mine = gpu::min(threadIdx.x, HEAD - 1);
    const SoftmaxColumn of_split =
        merged<HEAD>(groups, mine, [&](u32 group, u32 index) { return records[group * record + index]; });
    if (parts == 1) return finish(of_split);

    float* of_head = p.partial + u64(blockIdx.x) * p.splits * record;
    float* place = of_head + split * record;
    if (threadIdx.x < HEAD) store(place + threadIdx.x, of_split.value);
    if (threadIdx.x == 0) {
      store(place + HEAD, of_split.softmax.largest);
      store(place + HEAD + 1, of_split.softmax.sum);
    }
    if (!is_last(parts)) return;
    finish(merged<HEAD>(parts, mine, [&](u32 part, u32 index) { return load(of_head + part * record + index); }));
  }

 private:
  /// Processes keys `begin` to `end`. All lanes run the same number of iterations.
  template <bool ALIGNED>
  GPU_DEVICE void attend(u32 begin, u32 end) {
    float query[elements];
    tile::load_elements<E, ALIGNED, tile::Source::input>(head.query(0), column, p.head_size, query);
#pragma unroll 1
    for (u32 first = begin + threadIdx.x / lanes; first - threadIdx.x / lanes < end; first += groups * in_flight) {
      Chunk key[in_flight], value[in_flight];
#pragma unroll
      for (u32 k = 0; k < in_flight; k++) {
        const u32 j = first + k * groups, there = j < end ? p.head_size : 0;
        key[k] = tile::load_chunk<E, ALIGNED, tile::Source::input>(head.key(j), column, there);
        value[k] = tile::load_chunk<E, ALIGNED, tile::Source::input>(head.value(j), column, there);
      }
      float score[in_flight], most = minus_infinity();
#pragma unroll
      for (u32 k = 0; k < in_flight; k++) {
        score[k] = product(query, key[k]);
        score[k] = first + k * groups < end ? score[k] * p.scale : minus_infinity();
        most = gpu::max(most, score[k]);
      }
      const float factor = softmax.raise_maximum(most);
#pragma unroll
      for (u32 i = 0; i < elements; i++) sum[i] *= factor;
#pragma unroll
      for (u32 k = 0; k < in_flight; k++) {
        const float weight = softmax.weight(score[k]);
        softmax.sum += weight;
        float values[elements];
        unpack<E>(value[k], values);
#pragma unroll
        for (u32 i = 0; i < elements; i++) sum[i] = gpu::fma(weight, values[i], sum[i]);
      }
    }
  }

  /// The product of the query and a key, in every lane that shares the key.
  static GPU_DEVICE float product(const float (&query)[elements], Chunk key) {
    float factor[elements], total = 0.0f;
    unpack<E>(key, factor);
#pragma unroll
    for (u32 i = 0; i < elements; i++) total = gpu::fma(query[i], factor[i], total);
#pragma unroll
    for (u32 offset = lanes / 2; offset > 0; offset /= 2) total += shuffle_xor(total, offset);
    return total;
  }

  GPU_DEVICE void store_record() const {
    float* mine = records + threadIdx.x / lanes * record;
#pragma unroll
    for (u32 i = 0; i < elements; i++) mine[column + i] = sum[i];
    if (column == 0) {
      mine[HEAD] = softmax.largest;
      mine[HEAD + 1] = softmax.sum;
    }
  }

  /// Returns whether this CTA is the last of `parts` to store its record of the head. All threads of the CTA call it after
  /// storing the record.
  GPU_DEVICE bool is_last(u32 parts) const {
    sync_block();
    bool last = false;
    if (threadIdx.x == 0) {
      last = fetch_add_acq_rel(p.arrivals + blockIdx.x, 1u) == parts - 1;
      if (last) store_relaxed(p.arrivals + blockIdx.x, 0u);
    }
    return sync_block_or(last);
  }

  GPU_DEVICE void finish(const SoftmaxColumn& all) const {
    if (threadIdx.x < p.head_size) store(head.out(0) + threadIdx.x, from_f32<E>(all.value / all.softmax.sum));
  }

  const LoraAttention& p;
  AttentionHead<E> head;
  /// This lane's first column.
  u32 column;
  SharedMemory shared;
  float* records;
  Softmax softmax;
  float sum[elements];
};

}  // namespace transformer

#define ATTENTION_DECODE(NAME, E, HEAD)                                                           \
  GPU_KERNEL(NAME, LoraAttention, LORA_ATTENTION_THREADS, 4) { \
    gpu::grid_dependency_launch();                                                          \
    gpu::grid_dependency_wait();                                                            \
    transformer::AttentionDecode<gpu::E, HEAD>(params).run();                               \
  }

ATTENTION_DECODE(lora_attention_decode_f32_h64, f32, 64)
ATTENTION_DECODE(lora_attention_decode_f32_h128, f32, 128)
ATTENTION_DECODE(lora_attention_decode_f16_h64, f16, 64)
ATTENTION_DECODE(lora_attention_decode_f16_h128, f16, 128)
ATTENTION_DECODE(lora_attention_decode_bf16_h64, bf16, 64)
ATTENTION_DECODE(lora_attention_decode_bf16_h128, bf16, 128)
