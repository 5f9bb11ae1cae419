// The BLOCK of attention_prefill.h on mma.sync, for types of 16 bits. A head is padded to HEAD columns with zeros.
//
// Who owns what. A warp owns 16 queries; their fragments and the 16 × HEAD sums stay in registers. With 64 queries in a tile
// each of the four warps has its own, and processes every key of a tile. With 16 queries all warps have the same: each
// processes a quarter of a tile's keys, and at the end their sums are merged in the order of the warps. So a short sequence
// still has many CTAs: 128 tokens of 16 heads are 128 CTAs with 16 queries each. The accumulators of the scores are laid out
// like the left operand of the next product, so weights never go through shared memory. Weights are rounded to the operands'
// type; their sum is not.
//
// Bytes in flight: a tile of keys and values, 16 KiB at 64 columns. Shared memory: two such tiles, through which the queries
// pass first; 64 KiB at 128 columns, which every target has.
// Tried on paper and dropped: skipping the products above the diagonal 16 keys at a time (a branch in every product, for a
// sixth of the work at 256 tokens); queries in shared memory (read again for every tile of keys).
#pragma once

#include <gpu/mma.h>
#include <gpu/warp.h>
#include <transformer/attention_prefill.h>

namespace transformer {

/// QUERY_WARPS: warps with queries of their own, 4, or 1 where all warps share the queries and split the keys.
template <class E, u32 HEAD, u32 QUERY_WARPS>
class AttentionMma {
 public:
  using Element = E;
  static constexpr u32 head = HEAD, warps = LORA_ATTENTION_THREADS / warp_size, key_warps = warps / QUERY_WARPS;
  static constexpr u32 queries = 16 * QUERY_WARPS, keys = LORA_ATTENTION_MMA_KEYS, warp_keys = keys / key_warps;
  /// Rows of 192 bytes are padded to 256: no swizzle permutes twelve chunks without bank conflicts.
  static constexpr u32 row_chunks = HEAD == 32 ? 4 : HEAD == 64 ? 8 : 16;
  static constexpr u32 own_chunks = 0;
  /// Floats from one record to the next: whole chunks, and not a multiple of the 32 banks.
  static constexpr u32 record_floats = HEAD + 8;
  static_assert(chunk_elements<E> == 8, "types of 16 bits");
  static_assert(HEAD % 32 == 0 && HEAD / 8 <= row_chunks, "a padded head");

  /// `seen`: the last key that the first query sees.
  GPU_DEVICE AttentionMma(float scale, Chunk*, u32 chunks, u32 seen)
      : scale(scale), chunks(chunks), seen(seen + first_row()) {
#pragma unroll
    for (u32 n = 0; n < HEAD / 8; n++) {
#pragma unroll
      for (u32 i = 0; i < 4; i++) sum[n][i] = 0.0f;
    }
  }

  GPU_DEVICE void load_queries(const Chunk* tile) {
    const u32 lane = lane_id();
#pragma unroll
    for (u32 k = 0; k < HEAD / 16; k++) {
      const u32 place = tile::swizzled<row_chunks>(first_row() + lane % 16, 2 * k + lane / 16);
      ldmatrix_x4(query[k], shared_address(tile + place));
    }
  }

  /// Processes a tile of keys and values that begins with key `first`.
  GPU_DEVICE void attend(const Chunk* key_tile, const Chunk* value_tile, u32 first) {
    const u32 mine = first + first_key();
    if (mine > seen + 15) return;
    float score[warp_keys / 8][4];
    multiply_keys(score, key_tile);
#pragma unroll
    for (u32 n = 0; n < warp_keys / 8; n++) {
#pragma unroll
      for (u32 i = 0; i < 4; i++) score[n][i] *= scale;
    }
    if (mine + warp_keys - 1 > seen) mask_later_keys(score, mine);
#pragma unroll
    for (u32 half = 0; half < 2; half++) scores_to_weights(score, half);
    add_values(score, value_tile);
  }

  /// Calls store(query, chunk, results) for all results of this thread. `memory` is the ring's.
  template <class F>
  GPU_DEVICE void finish(Chunk* memory, F&& store) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
      softmax[half].sum += shuffle_xor(softmax[half].sum, 1);
      softmax[half].sum += shuffle_xor(softmax[half].sum, 2);
    }
    if constexpr (key_warps == 1) {
      store_own(memory, store);
    } else {
      merge_warps(reinterpret_cast<float*>(memory), store);
    }
  }

 private:
  static GPU_DEVICE u32 first_row() { return key_warps == 1 ? 16 * warp_id() : 0; }
  static GPU_DEVICE u32 first_key() { return key_warps == 1 ? 0 : warp_keys * warp_id(); }

  GPU_DEVICE void multiply_keys(float (&score)[warp_keys / 8][4], const Chunk* tile) const {
    const u32 lane = lane_id(), row = first_key() + lane / 16 * 8 + lane % 8, second = lane / 8 % 2;
#pragma unroll
    for (u32 n = 0; n < warp_keys / 8; n += 2) {
#pragma unroll
      for (u32 i = 0; i < 8; i++) score[n + i / 4][i % 4] = 0.0f;
#pragma unroll
      for (u32 k = 0; k < HEAD / 16; k++) {
        u32 b[4];
        ldmatrix_x4(b, shared_address(tile + tile::swizzled<row_chunks>(row + 8 * n, 2 * k + second)));
        mma_m16n8k16<E>(score[n], query[k], {b[0], b[1]});
        mma_m16n8k16<E>(score[n + 1], query[k], {b[2], b[3]});
      }
    }
  }

  /// Gives weight 0 to the keys after each query, in a tile that reaches beyond the diagonal.
  GPU_DEVICE void mask_later_keys(float (&score)[warp_keys / 8][4], u32 mine) const {
#pragma unroll
    for (u32 n = 0; n < warp_keys / 8; n++) {
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        const u32 key = mine + 8 * n + lane_id() % 4 * 2 + i % 2, last = seen + lane_id() / 4 + 8 * (i / 2);
        if (key > last) score[n][i] = minus_infinity();
      }
    }
  }

  /// Turns the scores of a lane's upper or lower query into weights.
  GPU_DEVICE void scores_to_weights(float (&score)[warp_keys / 8][4], u32 half) {
    float most = minus_infinity();
#pragma unroll
    for (u32 n = 0; n < warp_keys / 8; n++) most = gpu::max(most, gpu::max(score[n][2 * half], score[n][2 * half + 1]));
    most = gpu::max(most, shuffle_xor(most, 1));
    most = gpu::max(most, shuffle_xor(most, 2));
    const float factor = softmax[half].raise_maximum(most);
#pragma unroll
    for (u32 n = 0; n < HEAD / 8; n++) {
      sum[n][2 * half] *= factor;
      sum[n][2 * half + 1] *= factor;
    }
#pragma unroll
    for (u32 n = 0; n < warp_keys / 8; n++) {
#pragma unroll
      for (u32 i = 2 * half; i < 2 * half + 2; i++) {
        score[n][i] = softmax[half].weight(score[n][i]);
        softmax[half].sum += score[n][i];
      }
    }
  }

  GPU_DEVICE void add_values(const float (&weight)[warp_keys / 8][4], const Chunk* tile) {
    const u32 lane = lane_id(), row = first_key() + lane % 16;
#pragma unroll
    for (u32 k = 0; k < warp_keys / 16; k++) {
      const u32 a[4] = {pack<E>(weight[2 * k][0], weight[2 * k][1]), pack<E>(weight[2 * k][2], weight[2 * k][3]),
                        pack<E>(weight[2 * k + 1][0], weight[2 * k + 1][1]),
                        pack<E>(weight[2 * k + 1][2], weight[2 * k + 1][3])};
#pragma unroll
      for (u32 n = 0; n < HEAD / 8; n += 2) {
        u32 b[4];
        ldmatrix_x4_trans(b, shared_address(tile + tile::swizzled<row_chunks>(row + 16 * k, n + lane / 16)));
        mma_m16n8k16<E>(sum[n], a, {b[0], b[1]});
        mma_m16n8k16<E>(sum[n + 1], a, {b[2], b[3]});
      }
    }
  }

  /// Results pass through the warp's rows of shared memory, so that they are stored in whole chunks.
  template <class F>
  GPU_DEVICE void store_own(Chunk* memory, F&& store) const {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
      const float total = softmax[half].sum;
#pragma unroll
      for (u32 n = 0; n < HEAD / 8; n++) {
        Chunk* chunk = memory + tile::swizzled<row_chunks>(first_row() + lane_id() / 4 + 8 * half, n);
        chunk->word[lane_id() % 4] = pack<E>(sum[n][2 * half] / total, sum[n][2 * half + 1] / total);
      }
    }
    sync_warp();
    for (u32 i = lane_id(); i < 16 * chunks; i += warp_size) {
      const u32 row = first_row() + i / chunks, chunk = i % chunks;
      store(row, chunk, load_shared(memory + tile::swizzled<row_chunks>(row, chunk)));
    }
  }

  /// Every warp stores a record of each query; the records are merged in the order of the warps.
  template <class F>
  GPU_DEVICE void merge_warps(float* memory, F&& store) const {
    constexpr u32 ring_floats = 4 * LORA_ATTENTION_STAGES * 2 * keys * row_chunks;
    static_assert(warps * 16 * record_floats <= ring_floats, "the ring holds the records");
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
      float* mine = record(memory, warp_id(), lane_id() / 4 + 8 * half);
#pragma unroll
      for (u32 n = 0; n < HEAD / 8; n++) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) mine[8 * n + lane_id() % 4 * 2 + i] = sum[n][2 * half + i];
      }
      if (lane_id() % 4 == 0) {
        mine[HEAD] = softmax[half].largest;
        mine[HEAD + 1] = softmax[half].sum;
      }
    }
    sync_block();
    for (u32 i = threadIdx.x; i < 16 * chunks; i += LORA_ATTENTION_THREADS) {
      const u32 row = i / chunks, chunk = i % chunks;
      Softmax all;
      float factor[warps], results[8] = {};
#pragma unroll
      for (u32 warp = 0; warp < warps; warp++) all.largest = gpu::max(all.largest, record(memory, warp, row)[HEAD]);
#pragma unroll
      for (u32 warp = 0; warp < warps; warp++) {
        factor[warp] = all.weight(record(memory, warp, row)[HEAD]);
        all.sum = gpu::fma(factor[warp], record(memory, warp, row)[HEAD + 1], all.sum);
      }
#pragma unroll
      for (u32 warp = 0; warp < warps; warp++) {
#pragma unroll
        for (u32 c = 0; c < 8; c += 4) {
          float four[4];
          unpack<float>(load_shared(reinterpret_cast<const Chunk*>(record(memory, warp, row) + 8 * chunk + c)), four);
#pragma unroll
          for (u32 e = 0; e < 4; e++) results[c + e] = gpu::fma(factor[warp], four[e], results[c + e]);
        }
      }
#pragma unroll
      for (u32 c = 0; c < 8; c++) results[c] /= all.sum;
      store(row, chunk, pack<E>(results));
    }
  }

  /// A warp's record of a query: sums of values, largest score, sum of weights.
  static GPU_DEVICE float* record(float* memory, u32 warp, u32 row) {
    return memory + (warp * 16 + row) * record_floats;
  }

  float scale;
  u32 chunks;
  /// The last key that the warp's first query sees.
  u32 seen;
  u32 query[HEAD / 16][4];
  /// The softmaxes of a lane's two queries. Until `finish` the sums of weights cover this lane's keys only.
  Softmax softmax[2];
  float sum[HEAD / 8][4];
};

}  // namespace transformer
