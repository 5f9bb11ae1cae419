// lora_attention_decode: one query a sequence. attention.h says what is computed.
//
// Who owns what. A CTA owns a range of one head's keys, a split. As many lanes as a padded row has chunks share a
// key: each reads 16 bytes of it and of its value straight into registers, four keys ahead, and has the same columns
// of the query and of the sums. Groups of lanes take every groups-th key and have a softmax of their own; they are
// merged in their order through shared memory.
//
// Splits. Where there are few heads, several CTAs share one's keys: each leaves its record in the workspace, and the
// last to arrive merges all of them in the splits' order. How many have keys follows from the cache's length, which
// every CTA reads: the others leave at once, and nobody waits for them. The last resets the arrivals. The split that
// has the sequence's own key appends it.
//
// Grid: x the heads of all sequences, y the splits that a full memory has. Launches: 1. Nothing is allocated or
// reset.
// Bytes: every key and value once, which is the floor; a split's record of a head out and in again, 1 / split_keys of
// them.
// In flight: 128 threads × 8 × 16 B, 16 KiB a CTA.
// Determinism: every sum has a fixed order, which depends on the plan and the length and not on the schedule.
//
// kernels: lora_attention_decode_*
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
      if (split == 0) head.refuse(0, 1);
      return;
    }
    const u32 keys = head.past + 1, parts = (keys + p.split_keys - 1) / p.split_keys;
    if (split >= parts) return;
    const u32 begin = split * p.split_keys, end = gpu::min(begin + p.split_keys, keys);
    if (end == keys) head.append(0, 1);
    if (head.aligned) {
      meet<true>(begin, end);
    } else {
      meet<false>(begin, end);
    }
    leave_record();
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
  /// The keys `begin` to `end`. All lanes go round as often.
  template <bool ALIGNED>
  GPU_DEVICE void meet(u32 begin, u32 end) {
    float query[elements];
    tile::load_elements<E, ALIGNED>(head.query(0), column, p.head_size, query);
#pragma unroll 1
    for (u32 first = begin + threadIdx.x / lanes; first - threadIdx.x / lanes < end; first += groups * in_flight) {
      Chunk key[in_flight], value[in_flight];
#pragma unroll
      for (u32 k = 0; k < in_flight; k++) {
        const u32 j = first + k * groups, there = j < end ? p.head_size : 0;
        key[k] = tile::load_weight<E, ALIGNED>(head.key(j), column, there);
        value[k] = tile::load_weight<E, ALIGNED>(head.value(j), column, there);
      }
      float score[in_flight], most = minus_infinity();
#pragma unroll
      for (u32 k = 0; k < in_flight; k++) {
        score[k] = product(query, key[k]);
        score[k] = first + k * groups < end ? score[k] * p.scale : minus_infinity();
        most = gpu::max(most, score[k]);
      }
      const float factor = softmax.see(most);
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

  /// Of the query and a key, in every lane that shares it.
  static GPU_DEVICE float product(const float (&query)[elements], Chunk key) {
    float factor[elements], total = 0.0f;
    unpack<E>(key, factor);
#pragma unroll
    for (u32 i = 0; i < elements; i++) total = gpu::fma(query[i], factor[i], total);
#pragma unroll
    for (u32 offset = lanes / 2; offset > 0; offset /= 2) total += shuffle_xor(total, offset);
    return total;
  }

  GPU_DEVICE void leave_record() const {
    float* mine = records + threadIdx.x / lanes * record;
#pragma unroll
    for (u32 i = 0; i < elements; i++) mine[column + i] = sum[i];
    if (column == 0) {
      mine[HEAD] = softmax.largest;
      mine[HEAD + 1] = softmax.sum;
    }
  }

  /// Whether all `parts` of the head's records are there. All threads of the CTA call it, who left this one's.
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
  /// The first of this lane's.
  u32 column;
  SharedMemory shared;
  float* records;
  Softmax softmax;
  float sum[elements];
};

}  // namespace transformer

#define ATTENTION_DECODE(E, HEAD)                                                           \
  GPU_KERNEL(lora_attention_decode_##E##_h##HEAD, LoraAttention, LORA_ATTENTION_THREADS, 4) { \
    gpu::grid_dependency_launch();                                                          \
    gpu::grid_dependency_wait();                                                            \
    transformer::AttentionDecode<gpu::E, HEAD>(params).run();                               \
  }

ATTENTION_DECODE(f32, 64)
ATTENTION_DECODE(f32, 128)
ATTENTION_DECODE(f16, 64)
ATTENTION_DECODE(f16, 128)
ATTENTION_DECODE(bf16, 64)
ATTENTION_DECODE(bf16, 128)
