// LayerNorm of rows [rows, width], computed in f32 for every storage type:
//
//   y = (x - mean) / √(variance + ε) · weight + bias      mean = Σ x / width      variance = Σ (x - mean)² / width
//
// Who owns what: row.h. A row gets the warps that it takes to hold it in registers, and more where there are few rows, as
// long as each thread has a chunk: 128 rows of 1024 are a CTA each.
//
// Bytes: x in and y out once, 2·sizeof(E) per element; weight and bias, 8 bytes per column, come from L2 for all rows but
// the first. In flight: up to 128 bytes per thread in f32, 64 in 16-bit types, issued before the first is used. A row of
// more than 8192 elements is read twice except for its last block, the second time from L2.
//
// If rows are not whole chunks, or a parameter does not start at a multiple of 16 bytes, all accesses are of one element;
// the sums are the same, in the same order. Determinism: row.h.
#pragma once

#include <transformer/row.h>

namespace transformer {

template <class E, bool ALIGNED>
GPU_DEVICE void layer_norm(const LoraLayerNorm& p) {
  Row<E, ALIGNED> row(p.rows, p.width, p.row_threads_log2);
  Moments* shared = SharedMemory().take<Moments>(Row<E, ALIGNED>::warps);
  const E* x = static_cast<const E*>(p.x) + u64(row.index()) * p.x_stride;
  E* y = static_cast<E*>(p.y) + u64(row.index()) * p.y_stride;
  const auto fetch = [&](u32 block) {
    row.each(block, [&](u32, u32 first, Chunk& chunk) { chunk = row.load_chunk(x, first); });
  };

  Moments sum = {0.0f, 0.0f, 0.0f};
  row.through(fetch, [&](u32 block) { row.gather(block, sum); });
  sum = row.of_row(sum, shared);
  const float factor = factor_of(sum, p.epsilon);
  row.back_through(fetch, [&](u32 block) { row.normalize(block, sum.mean, factor, p.weight, p.bias, y); });
}

template <class E>
GPU_DEVICE void layer_norm(const LoraLayerNorm& p) {
  grid_dependency_launch();
  ask_for_norm(p.weight, p.bias, p.width);
  grid_dependency_wait();
  const bool aligned = rows_are_chunks<E>(p.x, p.x_stride, p.width) && rows_are_chunks<E>(p.y, p.y_stride, p.width) &&
                       tile::rows_are_aligned<float>(p.weight, 0) && tile::rows_are_aligned<float>(p.bias, 0);
  if (aligned) {
    layer_norm<E, true>(p);
  } else {
    layer_norm<E, false>(p);
  }
}

}  // namespace transformer
