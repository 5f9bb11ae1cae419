// The first rows of a transformer [rows, width], and LayerNorm of them in the same launch:
//
//   x = round(tokens[id] + positions[place])      y = LayerNorm(x)
//
// Ids beyond the vocabulary are rows of a second table, of trained prefix vectors. ids and places are read on the device,
// and the host cannot check them: an index beyond its table gives a row of NaN, and no byte outside the tables is read.
//
// row.h says who owns what, and how and in which order the moments are summed. The warps of a row keep x, rounded, in
// registers.
//
// Bytes: a row of each table in, x and y out: 4·sizeof(E) per element. In flight: twice the bytes of LayerNorm.
#pragma once

#include <transformer/row.h>

namespace transformer {

/// Row `index` of a table, or null where it has none.
template <class E>
GPU_DEVICE const E* row_of_table(const void* table, u32 index, u32 rows, u32 stride) {
  return index < rows ? static_cast<const E*>(table) + u64(index) * stride : nullptr;
}

/// The rounded sum of two chunks.
template <class E>
GPU_DEVICE Chunk sum_of_chunks(const Chunk& a, const Chunk& b) {
  float left[chunk_elements<E>], right[chunk_elements<E>];
  unpack<E>(a, left);
  unpack<E>(b, right);
#pragma unroll
  for (u32 i = 0; i < chunk_elements<E>; i++) left[i] += right[i];
  return pack<E>(left);
}

/// NaN in every element, of any type.
constexpr Chunk nan_chunk = {{~0u, ~0u, ~0u, ~0u}};

template <class E, bool ALIGNED>
GPU_DEVICE void embed(const LoraEmbedding& p) {
  Row<E, ALIGNED> row(p.rows, p.width, p.row_threads_log2);
  Moments* shared = SharedMemory().take<Moments>(Row<E, ALIGNED>::warps);
  const E *token = nullptr, *position = nullptr;
  if (row.index() < p.rows) {
    const u32 id = load(p.ids + row.index()), place = load(p.places + row.index());
    token = id < p.vocabulary ? row_of_table<E>(p.tokens, id, p.vocabulary, p.tokens_stride)
                              : row_of_table<E>(p.extra, id - p.vocabulary, p.extra_rows, p.extra_stride);
    position = row_of_table<E>(p.positions, place, p.position_rows, p.positions_stride);
  }
  const bool known = token != nullptr && position != nullptr;
  E* x = static_cast<E*>(p.x) + u64(row.index()) * p.x_stride;
  const auto make = [&](u32 block) {
    Chunk added[Row<E, ALIGNED>::slots];
    if (known) {
      row.each(block, [&](u32, u32 first, Chunk& chunk) { chunk = row.load_chunk(token, first); });
      row.each(block, [&](u32 slot, u32 first, Chunk&) { added[slot] = row.load_chunk(position, first); });
      row.each(block, [&](u32 slot, u32, Chunk& chunk) { chunk = sum_of_chunks<E>(chunk, added[slot]); });
    } else {
      row.each(block, [&](u32, u32, Chunk& chunk) { chunk = nan_chunk; });
    }
  };

  Moments sum = {0.0f, 0.0f, 0.0f};
  row.through(make, [&](u32 block) {
    row.each(block, [&](u32, u32 first, const Chunk& chunk) { row.store_chunk(x, first, chunk); });
    if (p.y != nullptr) row.gather(block, sum);
  });
  if (p.y == nullptr) return;
  E* y = static_cast<E*>(p.y) + u64(row.index()) * p.y_stride;
  sum = row.of_row(sum, shared);
  const float factor = factor_of(sum, p.epsilon);
  row.back_through(make, [&](u32 block) { row.normalize(block, sum.mean, factor, p.weight, p.bias, y); });
}

template <class E>
GPU_DEVICE void embed(const LoraEmbedding& p) {
  grid_dependency_launch();
  grid_dependency_wait();
  const auto chunks = [&](const void* base, u32 stride) { return rows_are_chunks<E>(base, stride, p.width); };
  const bool aligned = chunks(p.tokens, p.tokens_stride) && chunks(p.extra, p.extra_stride) &&
                       chunks(p.positions, p.positions_stride) && chunks(p.x, p.x_stride) && chunks(p.y, p.y_stride) &&
                       tile::rows_are_aligned<float>(p.weight, 0) && tile::rows_are_aligned<float>(p.bias, 0);
  if (aligned) {
    embed<E, true>(p);
  } else {
    embed<E, false>(p);
  }
}

}  // namespace transformer
