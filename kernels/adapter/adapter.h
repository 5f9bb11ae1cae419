// A bottleneck adapter (Houlsby et al. 2019, Lin et al. 2020, Pfeiffer et al. 2021) for any number of tokens, in one
// launch:
//
//   y[m, n] = Σ_j up[n, j] h[m, j] + bias[n] (+ x[m, n]) + residual[m, n],   h = act(x down^T + hidden_bias)
//
// for x, y and residual [tokens, d], down [width, d], up [d, width].
//
// It is the forward kernel (lora/forward_tile.h) without W0: h is T, with a bias and an activation on its way to
// memory, rounded to the type of everything; down is A, up is B, the scale 1. Tickets, flags, splits of T's depth and
// the order of every sum are a LoRA layer's. A tile of y has no steps of its own: it waits for h's tile, which is all
// of its depth. So the launch is as long as both products one after the other, as any adapter is; what it spares is the
// second launch and its gap.
//
// Columns that round the width up to whole steps stay zero in h, whatever the activation makes of zero.
//
// Bytes: x once for every 64 columns of h, and once more if it is added; down once a row tile, up once a tile of y; h
// out and in, (width + 15)/16·16 columns; y out. All but x, y and the residual come from L2 after their first tile.
#pragma once

#include <gpu/grid.h>
#include <lora/forward_tile.h>

namespace adapter {

using namespace gpu;

/// The way out of y.
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

/// What becomes of an adapter's sums.
struct Ends {
  const LoraAdapter& params;

  /// Stores a chunk of h.
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
  GPU_DEVICE Epilogue<E> epilogue(const LoraForward&) const {
    return Epilogue<E>(params);
  }
};

/// Tiles of 64 × 64, as of small LoRA layers.
template <class PRODUCT, class E, u32 DEPTH, bool ALIGNED>
GPU_DEVICE void run(const LoraAdapter& params) {
  using Tile = lora::ForwardTile<PRODUCT, E, Major::K, Major::K, 64, 64, 32, 32, DEPTH, 3, ALIGNED, Ends>;
  Tile(params.forward, Ends{params}).run();
}

}  // namespace adapter

#define ADAPTER(NAME, PRODUCT, E, DEPTH, ALIGNED)                         \
  GPU_KERNEL(NAME, LoraAdapter, 128, 3) {                                 \
    adapter::run<tile::PRODUCT, gpu::E, DEPTH, ALIGNED>(params);          \
  }
