// The BLOCK of attention_prefill.h on CUDA cores: true f32, and 16-bit types where there is no MMA for them.
//
// Eight lanes share ROWS queries: each lane owns the scores of every eighth key of a tile and every eighth chunk of the
// results' columns. A warp's queries are neighbours. Queries stay in shared memory. Softmax weights pass from the lanes that
// compute them to the lanes that need them through rows of shared memory that only their warp uses.
#pragma once

#include <gpu/warp.h>
#include <transformer/attention_prefill.h>

namespace transformer {

template <class E, u32 HEAD, u32 ROWS>
class AttentionCores {
 public:
  using Element = E;
  static constexpr u32 head = HEAD, elements = chunk_elements<E>, row_chunks = HEAD / elements, lanes = 8;
  static constexpr u32 warp_queries = warp_size / lanes * ROWS;
  static constexpr u32 queries = LORA_ATTENTION_THREADS / lanes * ROWS;
  /// Keys of a tile, limited by the shared memory that the queries leave.
  static constexpr u32 keys = HEAD * sizeof(E) > 256 ? 16 : 32;
  static constexpr u32 lane_keys = keys / lanes, lane_chunks = row_chunks / lanes;
  /// Chunks of a query's weights, one more than the keys need, so that the rows that a warp reads at a time are in different
  /// banks.
  static constexpr u32 weight_chunks = keys / 4 + 1;
  static constexpr u32 own_chunks = queries * (row_chunks + weight_chunks);

  /// `chunks`: the chunks of a row that exist. `seen`: the last key that the first query sees.
  GPU_DEVICE AttentionCores(float scale, Chunk* own, u32 chunks, u32 seen)
      : scale(scale),
        chunks(chunks),
        query_tile(own),
        weights(own + queries * row_chunks + first_row() * weight_chunks),
        seen(seen + first_row()) {
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
#pragma unroll
      for (u32 c = 0; c < lane_chunks; c++) {
#pragma unroll
        for (u32 i = 0; i < elements; i++) sum[r][c][i] = 0.0f;
      }
    }
  }

  /// Nothing to do: the queries stay in shared memory.
  GPU_DEVICE void load_queries(const Chunk*) {}

  /// Processes a tile of keys and values that begins with key `first`.
  GPU_DEVICE void attend(const Chunk* key_tile, const Chunk* value_tile, u32 first) {
    if (first > seen + warp_queries - 1) return;
    float score[ROWS][lane_keys];
    multiply_keys(score, key_tile);
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
      const u32 last = seen + row_of(r);
      float most = minus_infinity();
#pragma unroll
      for (u32 j = 0; j < lane_keys; j++) {
        const bool is_seen = first + lane() + j * lanes <= last;
        score[r][j] = is_seen ? score[r][j] * scale : minus_infinity();
        most = gpu::max(most, score[r][j]);
      }
#pragma unroll
      for (u32 offset = 1; offset < lanes; offset *= 2) most = gpu::max(most, shuffle_xor(most, offset));
      const float factor = softmax[r].raise_maximum(most);
#pragma unroll
      for (u32 c = 0; c < lane_chunks; c++) {
#pragma unroll
        for (u32 i = 0; i < elements; i++) sum[r][c][i] *= factor;
      }
      float* row = reinterpret_cast<float*>(weights + row_of(r) * weight_chunks);
#pragma unroll
      for (u32 j = 0; j < lane_keys; j++) {
        const float weight = softmax[r].weight(score[r][j]);
        softmax[r].sum += weight;
        row[lane() + j * lanes] = weight;
      }
    }
    sync_warp();
    add_values(value_tile);
  }

  /// Calls store(query, chunk, results) for all results of this lane.
  template <class F>
  GPU_DEVICE void finish(Chunk*, F&& store) {
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
      float total = softmax[r].sum;
#pragma unroll
      for (u32 offset = 1; offset < lanes; offset *= 2) total += shuffle_xor(total, offset);
#pragma unroll
      for (u32 c = 0; c < lane_chunks; c++) {
        const u32 chunk = lane() + c * lanes;
        if (chunk >= chunks) continue;
#pragma unroll
        for (u32 i = 0; i < elements; i++) sum[r][c][i] /= total;
        store(first_row() + row_of(r), chunk, pack<E>(sum[r][c]));
      }
    }
  }

 private:
  static GPU_DEVICE u32 lane() { return lane_id() % lanes; }
  static GPU_DEVICE u32 first_row() { return warp_id() * warp_queries; }
  /// Query r of this lane among the warp's. For one r the warp's queries are neighbours, whose chunks are in different
  /// banks.
  static GPU_DEVICE u32 row_of(u32 r) { return lane_id() / lanes + r * (warp_size / lanes); }

  GPU_DEVICE void multiply_keys(float (&score)[ROWS][lane_keys], const Chunk* key_tile) const {
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
#pragma unroll
      for (u32 j = 0; j < lane_keys; j++) score[r][j] = 0.0f;
    }
#pragma unroll 1
    for (u32 c = 0; c < chunks; c++) {
      float query[ROWS][elements];
#pragma unroll
      for (u32 r = 0; r < ROWS; r++) {
        unpack<E>(load_shared(query_tile + tile::swizzled<row_chunks>(first_row() + row_of(r), c)), query[r]);
      }
#pragma unroll
      for (u32 j = 0; j < lane_keys; j++) {
        float key[elements];
        unpack<E>(load_shared(key_tile + tile::swizzled<row_chunks>(lane() + j * lanes, c)), key);
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
#pragma unroll
          for (u32 i = 0; i < elements; i++) score[r][j] = gpu::fma(query[r][i], key[i], score[r][j]);
        }
      }
    }
  }

  GPU_DEVICE void add_values(const Chunk* value_tile) {
#pragma unroll 1
    for (u32 j = 0; j < keys; j += 4) {
      float weight[ROWS][4];
#pragma unroll
      for (u32 r = 0; r < ROWS; r++) unpack<float>(load_shared(weights + row_of(r) * weight_chunks + j / 4), weight[r]);
#pragma unroll
      for (u32 k = 0; k < 4; k++) {
#pragma unroll
        for (u32 c = 0; c < lane_chunks; c++) {
          const u32 chunk = lane() + c * lanes;
          if (chunk >= chunks) continue;
          float value[elements];
          unpack<E>(load_shared(value_tile + tile::swizzled<row_chunks>(j + k, chunk)), value);
#pragma unroll
          for (u32 r = 0; r < ROWS; r++) {
#pragma unroll
            for (u32 i = 0; i < elements; i++) sum[r][c][i] = gpu::fma(weight[r][k], value[i], sum[r][c][i]);
          }
        }
      }
    }
  }

  float scale;
  u32 chunks;
  const Chunk* query_tile;
  /// The weights of the warp's queries.
  Chunk* weights;
  /// The last key that the warp's first query sees.
  u32 seen;
  Softmax softmax[ROWS];
  float sum[ROWS][lane_chunks][elements];
};

}  // namespace transformer
