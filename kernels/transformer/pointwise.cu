// y = activation(y + scale * added): adds the result of a LoRA that runs beside its layer, or applies an activation alone.
// Memory-bound: both are read once, y is written once.
//
// Who owns what. A thread owns a chunk of 16 bytes of a row; where rows do not start and end at multiples of 16 bytes, it
// takes the chunk's elements one by one. Sums are f32, rounded once.
//
// sass: lora_pointwise_*  registers <= 40  has LDG.E.128  has STG.E.128  lacks HMMA
#include <gpu/grid.h>
#include <tile/elements.h>
#include <tile/epilogue.h>

namespace transformer {

using namespace gpu;

template <class E>
GPU_DEVICE void pointwise(const LoraPointwise& p) {
  constexpr u32 elements = chunk_elements<E>;
  grid_dependency_launch();
  grid_dependency_wait();
  const u32 row = blockIdx.x / p.row_ctas, part = blockIdx.x % p.row_ctas;
  const u32 column = (part * LORA_POINTWISE_THREADS + threadIdx.x) * elements;
  if (column >= p.columns) return;
  E* y = static_cast<E*>(p.y) + u64(row) * p.y_stride + column;
  const E* added = p.added == nullptr ? nullptr : static_cast<const E*>(p.added) + u64(row) * p.added_stride + column;
  const bool aligned = tile::rows_are_aligned<E>(p.y, p.y_stride) &&
                       (added == nullptr || tile::rows_are_aligned<E>(p.added, p.added_stride));
  if (aligned && column + elements <= p.columns) {
    float value[elements], term[elements];
    unpack<E>(load(reinterpret_cast<const Chunk*>(y)), value);
    if (added) {
      unpack<E>(load(reinterpret_cast<const Chunk*>(added)), term);
#pragma unroll
      for (u32 i = 0; i < elements; i++) value[i] = gpu::fma(p.scale, term[i], value[i]);
    }
#pragma unroll
    for (u32 i = 0; i < elements; i++) value[i] = tile::activate(value[i], p.activation);
    store(reinterpret_cast<Chunk*>(y), pack<E>(value));
    return;
  }
#pragma unroll 1
  for (u32 i = 0; i < elements && column + i < p.columns; i++) {
    float value = to_f32(load(y + i));
    if (added) value = gpu::fma(p.scale, to_f32(load(added + i)), value);
    store(y + i, from_f32<E>(tile::activate(value, p.activation)));
  }
}

}  // namespace transformer

#define POINTWISE(NAME, E) \
  GPU_KERNEL(NAME, LoraPointwise, LORA_POINTWISE_THREADS, 4) { transformer::pointwise<E>(params); }

POINTWISE(lora_pointwise_f32, float)
POINTWISE(lora_pointwise_f16, gpu::f16)
POINTWISE(lora_pointwise_bf16, gpu::bf16)
