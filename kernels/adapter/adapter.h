// A bottleneck adapter (Houlsby et al. 2019, Lin et al. 2020, Pfeiffer et al. 2021) for any number of tokens, in one
// launch:
//
//   y[m, n] = Σ_j up[n, j] h[m, j] + bias[n] (+ x[m, n]) + residual[m, n],   h = act(x down^T + hidden_bias)
//
// for x, y and residual [tokens, d], down [width, d], up [d, width].
//
// It is the forward kernel (lora/forward_tile.h) without W0: T is h, which gets a bias and an activation before it is
// stored, rounded to the operands' type; A is down, B is up, the scale is 1. Tickets, flags, the split-K of T and the order
// of every sum are those of a LoRA layer. A y tile has no K steps of its own: it waits for the T tiles of its rows, then
// multiplies T and B. So the launch takes as long as both products one after the other, as any bottleneck adapter must; it
// saves the second launch and the gap before it.
//
// The columns of h that round the width up are stored as zeros, even where the activation of 0 is not 0.
//
// Bytes: x once per 64 columns of h, and once more if it is added; down and up once per row tile; h, of (width + 15)/16·16
// columns, stored once and loaded by every y tile of its rows; y once. After the first tile that reads them, all but x, y
// and the residual come from L2.
#pragma once

#include <gpu/grid.h>
#include <lora/forward_tile.h>

namespace adapter {

using namespace gpu;

/// The epilogue of y: adds x if asked, then does what a LoRA layer's epilogue does.
template <class E>
class Epilogue {
 public:
  GPU_DEVICE explicit Epilogue(const LoraAdapter& params)
      : p(params.forward),
        layer(p),
        adds_input(params.adds_input != 0),
        x_aligned(tile::rows_are_aligned<E>(p.x, p.x_stride)) {}

  GPU_DEVICE void store_chunk(float (&value)[chunk_elements<E>], u32 row, u32 column) const {
    if (adds_input && row < p.tokens && column < p.columns) {
      const E* x = static_cast<const E*>(p.x) + u64(row) * p.x_stride;
      float added[chunk_elements<E>];
      if (x_aligned && column + chunk_elements<E> <= p.columns) {
        unpack<E>(load(reinterpret_cast<const Chunk*>(x + column)), added);
      } else {
#pragma unroll
        for (u32 i = 0; i < chunk_elements<E>; i++) {
          added[i] = column + i < p.columns ? to_f32(load(x + column + i)) : 0.0f;
        }
      }
#pragma unroll
      for (u32 i = 0; i < chunk_elements<E>; i++) value[i] += added[i];
    }
    layer.store_chunk(value, row, column);
  }

 private:
  const LoraForward& p;
  tile::Epilogue<E> layer;
  bool adds_input, x_aligned;
};

/// How an adapter stores T and y: Epilogue of a lora::TileConfig.
struct AdapterEpilogue {
  const LoraAdapter& params;

  /// Stores a chunk of h, after bias and activation.
  template <class E, Major FACTORS>
  GPU_DEVICE void store_t(const LoraForward& p, const lora::SegmentFactors&, float (&value)[chunk_elements<E>], u32 row,
                          u32 column) const {
    const u32 width = p.segments[0].factors.rank;
    const E* bias = static_cast<const E*>(params.hidden_bias);
#pragma unroll
    for (u32 i = 0; i < chunk_elements<E>; i++) {
      if (bias && column + i < width) value[i] += to_f32(load_constant(bias + column + i));
      value[i] = column + i < width ? tile::activate(value[i], params.hidden_activation) : 0.0f;
    }
    store(reinterpret_cast<Chunk*>(static_cast<E*>(p.t) + u64(row) * p.t_stride + column), pack<E>(value));
  }

  template <class E>
  GPU_DEVICE Epilogue<E> of_y(const LoraForward&) const {
    return Epilogue<E>(params);
  }
};

}  // namespace adapter

/// TILE is one of the 64 × 64 tiles of lora/tiles.h, like those of small LoRA layers.
#define ADAPTER(NAME, PRODUCT, E, TILE)                                                                            \
  GPU_KERNEL(NAME, LoraAdapter, lora::tiles::TILE::threads, lora::tiles::TILE::ctas) {                             \
    using Config = lora::TileConfig<tile::PRODUCT, gpu::E, gpu::Major::K, gpu::Major::K, lora::tiles::TILE,        \
                                    adapter::AdapterEpilogue>;                                                     \
    lora::ForwardTile<Config>(params.forward, adapter::AdapterEpilogue{params}).run();                             \
  }
