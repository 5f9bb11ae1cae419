// lora_attention_prefill: many queries per sequence. attention.h says what is computed.
//
// Who owns what. A CTA owns a tile of neighbouring queries of one head: 64, or 16 where there would be too few CTAs. It
// processes tiles of keys, up to the last key that its last query sees. The ring's two stages hold keys and values: the next
// tile is copied while this one is multiplied, with one barrier per tile. The template argument BLOCK has the products and
// the softmax: attention_prefill_mma.h or attention_prefill_cores.h. Later queries see more keys, so the grid begins with
// the last tile of queries and ends with the shortest work.
//
// Grid: x = heads of all sequences, y = tiles of queries. Launches: 1. Nothing is allocated or reset.
// Bytes: queries and results once, keys and values once per tile of queries, mostly from L2.
// Alignment is tested when rows are copied: rows that do not start at multiples of 16 bytes are copied value by value.
// Keys after a query have a weight of zero. If their value is not finite, earlier queries of the same tile become NaN, as
// 0·∞ does in a product with a masked matrix.
#pragma once

#include <gpu/block.h>
#include <gpu/copy_async.h>
#include <gpu/grid.h>
#include <gpu/shared.h>
#include <tile/staged.h>
#include <transformer/attention.h>

namespace transformer {

/// A BLOCK has: Element, the type; head, the elements of a padded head; queries and keys of a tile; row_chunks, the chunks
/// from row to row of a tile in shared memory; own_chunks, the chunks of its own shared memory, where queries stay (0: they
/// stay in registers).
template <class BLOCK>
class AttentionPrefill {
 public:
  using E = typename BLOCK::Element;
  static constexpr u32 threads = LORA_ATTENTION_THREADS, elements = chunk_elements<E>, chunks = BLOCK::head / elements;
  static constexpr u32 tile_chunks = BLOCK::keys * BLOCK::row_chunks, stage_chunks = 2 * tile_chunks;
  static_assert(LORA_ATTENTION_STAGES == 2, "one stage is filled while the other is read");
  static_assert(BLOCK::own_chunks > 0 || BLOCK::queries * BLOCK::row_chunks <= stage_chunks, "queries fit a stage");

  GPU_DEVICE explicit AttentionPrefill(const LoraAttention& params)
      : p(params),
        head(params, blockIdx.x),
        first((gridDim.y - 1 - blockIdx.y) * BLOCK::queries),
        end(gpu::min(first + BLOCK::queries, params.tokens)),
        shared(),
        ring(shared.take<Chunk, 128>(LORA_ATTENTION_STAGES * stage_chunks)),
        own(BLOCK::own_chunks > 0 ? shared.take<Chunk, 128>(BLOCK::own_chunks) : nullptr) {}

  GPU_DEVICE void run() {
    if (!head.fits) return head.store_nan(first, end);
    const u32 seen = head.past + end, tiles = (seen + BLOCK::keys - 1) / BLOCK::keys;
    Chunk* queries = BLOCK::own_chunks > 0 ? own : ring + stage_chunks;
    stage<BLOCK::queries>(queries, [&](u32 row) { return first + row < end ? head.query(first + row) : nullptr; });
    fetch(0, seen);
    copy_async_commit();
    head.append(first, end);

    BLOCK block(p.scale, own, (p.head_size + elements - 1) / elements, head.past + first);
#pragma unroll 1
    for (u32 tile = 0; tile < tiles; tile++) {
      copy_async_wait<0>();
      sync_block();
      if (BLOCK::own_chunks == 0 && tile == 0) {
        block.load_queries(queries);
        sync_block();
      }
      if (tile + 1 < tiles) fetch(tile + 1, seen);
      copy_async_commit();
      const Chunk* keys = ring + tile % 2 * stage_chunks;
      block.attend(keys, keys + tile_chunks, tile * BLOCK::keys);
    }
    sync_block();
    block.finish(ring, [&](u32 row, u32 chunk, Chunk results) {
      if (first + row < end) store_results(head.out(first + row), chunk * elements, results);
    });
  }

 private:
  /// Issues the copies of a tile of keys and values; those from `seen` on become zeros.
  GPU_DEVICE void fetch(u32 tile, u32 seen) const {
    Chunk* keys = ring + tile % 2 * stage_chunks;
    const u32 begin = tile * BLOCK::keys;
    stage<BLOCK::keys>(keys, [&](u32 row) { return begin + row < seen ? head.key(begin + row) : nullptr; });
    Chunk* values = keys + tile_chunks;
    stage<BLOCK::keys>(values, [&](u32 row) { return begin + row < seen ? head.value(begin + row) : nullptr; });
  }

  template <u32 ROWS, class F>
  GPU_DEVICE void stage(Chunk* tile, F&& row_of) const {
    if (head.aligned) {
      stage_as<ROWS, true>(tile, row_of);
    } else {
      stage_as<ROWS, false>(tile, row_of);
    }
  }

  template <u32 ROWS, bool ALIGNED, class F>
  GPU_DEVICE void stage_as(Chunk* tile, F&& row_of) const {
    constexpr u32 count = (ROWS * chunks + threads - 1) / threads;
    // Value by value, one chunk at a time has enough loads in flight, and more would not fit the registers.
    [[maybe_unused]] constexpr u32 at_a_time = ALIGNED ? count : 1;
#pragma unroll at_a_time
    for (u32 i = 0; i < count; i++) {
      const u32 number = i * threads + threadIdx.x, row = number / chunks, chunk = number % chunks;
      if (ROWS * chunks % threads != 0 && row >= ROWS) break;
      Chunk* place = tile + tile::swizzled<BLOCK::row_chunks>(row, chunk);
      tile::stage_chunk<E, ALIGNED>(place, row_of(row), chunk * elements, p.head_size, p.qkv);
    }
  }

  /// Stores a chunk of a row of the result, from column `column` on.
  GPU_DEVICE void store_results(E* row, u32 column, Chunk results) const {
    if (column + elements <= p.head_size && reinterpret_cast<u64>(row + column) % sizeof(Chunk) == 0) {
      return store(reinterpret_cast<Chunk*>(row + column), results);
    }
    float values[elements];
    unpack<E>(results, values);
#pragma unroll
    for (u32 i = 0; i < elements; i++) {
      if (column + i < p.head_size) store(row + column + i, from_f32<E>(values[i]));
    }
  }

  const LoraAttention& p;
  AttentionHead<E> head;
  /// The CTA's queries: `first` to `end`.
  u32 first, end;
  SharedMemory shared;
  Chunk* ring;
  Chunk* own;
};

}  // namespace transformer

/// BLOCK<E, HEAD, SHARE> is the block's type; CTAS are those that the registers of an SM must suffice for.
#define ATTENTION_PREFILL(NAME, BLOCK, E, HEAD, SHARE, CTAS)                                   \
  GPU_KERNEL(NAME, LoraAttention, LORA_ATTENTION_THREADS, CTAS) {                              \
    gpu::grid_dependency_launch();                                                             \
    gpu::grid_dependency_wait();                                                               \
    transformer::AttentionPrefill<transformer::BLOCK<gpu::E, HEAD, SHARE>>(params).run();      \
  }
