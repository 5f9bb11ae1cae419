// AdamW on every factor of every adapter in one launch, with gradients clipped by the norm of all of them:
//
//   norm = √Σ g²      clip = min(1, max_norm / (norm + 1e-6))      g ← clip·g
//   m ← β₁·m + (1 − β₁)·g      v ← β₂·v + (1 − β₂)·g²
//   p ← p·(1 − lr·λ) − lr/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)      stored ← round(p)
//
// g, p, m and v are f32; `stored` is the copy that the layer reads, in the layer's type. lr is the learning rate of A or of
// B, times a factor in device memory if there is one. If the norm is not finite, a square might overflow v, or lr is not a
// valid learning rate, only the report is written.
//
// Who owns what. The parameters are cut into chunks, each of one tensor. A table in device memory has one entry per chunk,
// with its final addresses: hundreds of tensors do not fit a launch's parameters, and a search would cost dependent trips to
// L2. A CTA works on one chunk at a time, a thread on four neighbouring elements: 16 bytes at once where all addresses allow
// it, else element by element. Which thread sums which squares does not depend on the alignment.
//
// Tickets (tile/ticket.h). One counter serves both passes: tickets 0 to chunks - 1 stand for sums of squares, the next
// `chunks` tickets for updates. When a CTA takes the ticket of an update, every sum has been claimed by a CTA that is
// running or has ended, and that does not wait before its sums are stored. So the launch ends with any number of resident
// CTAs, in any order, without a grid barrier and without a cooperative launch. A CTA that gets no more tickets of sums adds
// the number of its sums to a count of arrivals; the one that completes the count adds the sums of all chunks in their order
// and publishes the decision.
//
// The decision is one 64-bit word: the clip factor, or NaN for a skipped step, and the launch's epoch. The other CTAs poll
// that word, which needs no fence and is never cleared. Before they poll they compute what does not depend on the norm (βᵗ
// in double precision, lr, λ) and prefetch the lines of p, m and v of their next chunk.
//
// State. The number of steps taken is kept on the device, in the report. A launch reads the report of the launch before and
// writes its own, so no report is read while it is written. Replays of a captured graph continue the count.
//
// Bytes: g, p, m, v in, p, m, v and the copy out: the floor is 28 + sizeof(copy) per element. The norm must be known before
// anything is written, so g is read a second time, 4 bytes more per element; the gradients of a LoRA fit L2. The second pass
// runs in reverse, so when the gradients exceed L2, the most recently read part still hits. A table entry of 48 bytes and a
// sum of 8 bytes per chunk are 0.1 % where tensors fill their chunks. In flight: 64 bytes per thread in the first pass, 128
// in the second; three CTAs of 256 threads per SM.
// Precision: squares are exact in double precision and their sum cannot overflow, so the norm is finite exactly if all
// gradients are. That costs one conversion and one fma in f64 per element. On an SM with 2 lanes of f64 (sm_75, 86, 89, 120)
// 64 elements take 64 cycles, about the rate at which memory delivers them.
//
// Determinism: the sum of a chunk has a fixed order, and so has the sum of the chunks; no other value depends on the sums of
// another thread. The bits are the same from run to run, for any grid, any schedule and any alignment.
#pragma once

#include <abi.h>
#include <gpu/block.h>
#include <gpu/math.h>
#include <gpu/shared.h>
#include <tile/elements.h>
#include <tile/reduce.h>
#include <tile/ticket.h>

namespace optim {

using namespace gpu;

/// A step's constants for A or for B. `rate` is NaN if lr is not a valid learning rate.
struct Coefficients {
  float decay;      // 1 - lr·λ
  float first[2];   // β₁, 1 - β₁
  float second[2];  // β₂, 1 - β₂
  float rate;       // lr/(1 - β₁ᵗ)
  float root;       // 1/√(1 - β₂ᵗ)
  float eps;
};

/// base^exponent, within `exponent` units in the last place.
GPU_DEVICE double power(double base, u64 exponent) {
  double result = 1.0;
#pragma unroll 1
  for (; exponent != 0; exponent /= 2, base *= base) {
    if (exponent % 2 != 0) result *= base;
  }
  return result;
}

GPU_DEVICE void load_four(const float* from, float (&out)[4]) {
  unpack<float>(load(reinterpret_cast<const Chunk*>(from)), out);
}

/// Stores four values: 16 bytes, or 8 in a 16-bit type.
template <class E>
GPU_DEVICE void store_four(E* to, const float (&in)[4]) {
  if constexpr (same_type<E, float>) {
    store(reinterpret_cast<Chunk*>(to), pack<float>(in));
  } else {
    const u64 low = pack<E>(in[0], in[1]), high = pack<E>(in[2], in[3]);
    store(reinterpret_cast<u64*>(to), high << 32 | low);
  }
}

/// E: the type of the stored copies.
template <class E>
class Adamw {
 public:
  static constexpr u32 threads = LORA_ADAMW_THREADS, warps = threads / warp_size;
  /// Elements that the CTA takes at a time, and the number of such groups that an update loads before it uses the first.
  static constexpr u32 stride = 4 * threads, unroll = LORA_ADAMW_STEP / stride;
  static constexpr float largest_f32 = 0x1.fffffep127f;
  static constexpr double largest_f64 = 0x1.fffffffffffffp1023;

  GPU_DEVICE explicit Adamw(const LoraAdamw& params)
      : p(params),
        shared(),
        word(shared.take<u64>(2)),
        sums(shared.take<double>(2 * warps)),
        coefficients(shared.take<Coefficients>(2)),
        clip(shared.take<float>(1)) {}

  GPU_DEVICE void run() {
    const u32 chunks = p.chunk_count, draws = 2 * chunks + gridDim.x;
    u64 next = 0;  // only thread 0 uses it
    const auto hand_out = [&](u32 round) {
      if (threadIdx.x != 0) return;
      tile::settle_ticket(&p.state->ticket, next, draws);
      word[round % 2] = next;
    };
    const auto draw = [&] {
      if (threadIdx.x == 0) next = tile::draw_ticket(&p.state->ticket);
    };

    draw();
    hand_out(0);
    sync_block();
    u64 mine = word[0];
    const u32 epoch = tile::ticket_epoch(mine);
    u32 round = 1;
    for (; tile::ticket_number(mine) < chunks; round++) {
      draw();  // in flight while this ticket's squares are summed
      const double sum = tile::sum_of_warp(sum_of_squares(tile::ticket_number(mine)));
      double* parts = sums + round % 2 * warps;
      if (lane_id() == 0) parts[warp_id()] = sum;
      hand_out(round);
      sync_block();
      if (threadIdx.x == 0) store(p.partial + tile::ticket_number(mine), total(parts));
      mine = word[round % 2];
    }

    Decision decision = {};
    const bool is_last = arrive(round - 1);
    if (is_last) decision = decide_clip(epoch);
    if (!is_last && tile::ticket_number(mine) >= 2 * chunks) return;
    if (tile::ticket_number(mine) < 2 * chunks) prefetch(2 * chunks - 1 - tile::ticket_number(mine));
    const u64 before = load(&p.state->reports[(epoch + 1) % 2].steps);
    if (threadIdx.x < 2) coefficients[threadIdx.x] = coefficients_of(threadIdx.x, before + 1);
    if (threadIdx.x == 0) *clip = await_clip(epoch);
    sync_block();
    // False for NaN, which is not equal to itself.
    const bool has_rates = coefficients[0].rate == coefficients[0].rate && coefficients[1].rate == coefficients[1].rate;
    const bool applies = has_rates && *clip == *clip;
    if (is_last && threadIdx.x == 0) write_report(decision, has_rates, before, &p.state->reports[epoch % 2]);
    for (; tile::ticket_number(mine) < 2 * chunks; round++) {
      draw();
      if (applies) update(2 * chunks - 1 - tile::ticket_number(mine));
      hand_out(round);
      sync_block();
      mine = word[round % 2];
    }
  }

 private:
  struct Decision {
    double norm, clipped_by;
    u32 skipped;
  };

  /// This thread's part of the sum of squares of a chunk's gradients.
  GPU_DEVICE double sum_of_squares(u32 index) const {
    const float* gradient = load_constant(&p.chunks[index].gradient);
    const u32 elements = load_constant(&p.chunks[index].elements);
    const bool aligned = reinterpret_cast<u64>(gradient) % sizeof(Chunk) == 0;
    double sum[4] = {};
#pragma unroll 1
    for (u32 first = 4 * threadIdx.x; first < elements; first += 4 * stride) {
      float g[4][4];
#pragma unroll
      for (u32 u = 0; u < 4; u++) tile::load_elements<float, tile::Source::input>(gradient, first + u * stride, elements, aligned, g[u]);
#pragma unroll
      for (u32 u = 0; u < 4; u++) {
#pragma unroll
        for (u32 e = 0; e < 4; e++) sum[e] += to_f64(g[u][e]) * to_f64(g[u][e]);
      }
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  GPU_DEVICE static double total(const double* parts) {
    double sum = parts[0];
#pragma unroll
    for (u32 w = 1; w < warps; w++) sum += parts[w];
    return sum;
  }

  /// Counts `summed` more chunks as summed. Returns whether these were the last.
  GPU_DEVICE bool arrive(u32 summed) {
    bool last = false;
    // A CTA without sums does not arrive: between the last arrival and the reset it would look like the last one too.
    if (threadIdx.x == 0 && summed != 0) {
      last = fetch_add_acq_rel(&p.state->arrivals, summed) + summed == p.chunk_count;
      if (last) store_relaxed(&p.state->arrivals, 0u);
    }
    return sync_block_or(last);
  }

  /// Adds the sums of all chunks and publishes the decision. All threads of the CTA call it; only thread 0 gets the decision.
  GPU_DEVICE Decision decide_clip(u32 epoch) {
    double sum = 0.0;
#pragma unroll 8
    for (u32 i = threadIdx.x; i < p.chunk_count; i += threads) sum += load(p.partial + i);
    sum = tile::sum_of_warp(sum);
    if (lane_id() == 0) sums[warp_id()] = sum;
    sync_block();
    Decision decision = {};
    if (threadIdx.x != 0) return decision;
    decision.norm = gpu::sqrt(total(sums));
    decision.clipped_by = p.max_norm / (decision.norm + p.norm_epsilon);
    if (!(decision.clipped_by < 1.0)) decision.clipped_by = 1.0;
    // No clipped gradient is larger than this.
    const double largest = decision.norm * decision.clipped_by;
    if (!(decision.norm <= largest_f64)) {
      decision.skipped = LORA_ADAMW_NON_FINITE;
    } else if (largest * largest > to_f64(largest_f32)) {
      decision.skipped = LORA_ADAMW_TOO_LARGE;
    }
    const u32 said = decision.skipped != LORA_ADAMW_TAKEN ? 0x7fffffff : bits(to_f32(decision.clipped_by));
    store_relaxed(&p.state->decision, u64(epoch) << 32 | said);
    return decision;
  }

  /// Waits for the decision: the factor of all gradients, or NaN.
  GPU_DEVICE float await_clip(u32 epoch) const {
    while (true) {
      const u64 said = load_relaxed(&p.state->decision);
      if (u32(said >> 32) == epoch) return from_bits(u32(said));
      back_off();
    }
  }

  GPU_DEVICE Coefficients coefficients_of(u32 factor, u64 step) const {
    const double scale = p.lr_scale != nullptr ? to_f64(load(p.lr_scale)) : 1.0;
    const double lr = scale * (factor == 0 ? p.rates[0] : p.rates[1]);
    Coefficients c;
    c.decay = to_f32(1.0 - lr * p.weight_decay);
    c.first[0] = to_f32(p.betas[0]);
    c.first[1] = to_f32(1.0 - p.betas[0]);
    c.second[0] = to_f32(p.betas[1]);
    c.second[1] = to_f32(1.0 - p.betas[1]);
    c.rate = to_f32(lr / (1.0 - power(p.betas[0], step)));
    c.root = to_f32(1.0 / gpu::sqrt(1.0 - power(p.betas[1], step)));
    c.eps = p.eps;
    const bool is_rate = lr >= 0.0 && c.rate <= largest_f32 && gpu::abs(c.decay) <= largest_f32;
    if (!is_rate) c.rate = from_bits(0x7fffffff);
    return c;
  }

  GPU_DEVICE static void write_report(const Decision& decision, bool has_rates, u64 before, LoraAdamwReport* report) {
    const u32 skipped = has_rates || decision.skipped != LORA_ADAMW_TAKEN ? decision.skipped : LORA_ADAMW_LEARNING_RATE;
    const bool taken = skipped == LORA_ADAMW_TAKEN;
    store(&report->norm, decision.norm);
    store(&report->clipped_by, taken ? decision.clipped_by : 1.0);
    store(&report->steps, before + (taken ? 1 : 0));
    store(&report->skipped, skipped);
  }

  /// Prefetches what the update of a chunk will read, except the gradient, which the first pass has read.
  GPU_DEVICE void prefetch(u32 index) const {
    const LoraAdamwChunk chunk = chunk_at(index);
    constexpr u32 line = 128 / sizeof(float);
    for (u32 i = threadIdx.x * line; i < chunk.elements; i += threads * line) {
      prefetch_l2(chunk.value + i);
      prefetch_l2(chunk.first_moment + i);
      prefetch_l2(chunk.second_moment + i);
    }
  }

  GPU_DEVICE LoraAdamwChunk chunk_at(u32 index) const {
    // Field by field: with three loads of 16 bytes ptxas spills on sm_120.
    const LoraAdamwChunk* chunk = p.chunks + index;
    return {load_constant(&chunk->gradient),
            load_constant(&chunk->value),
            load_constant(&chunk->first_moment),
            load_constant(&chunk->second_moment),
            load_constant(&chunk->stored),
            load_constant(&chunk->elements),
            load_constant(&chunk->factor)};
  }

  GPU_DEVICE void update(u32 index) const {
    const LoraAdamwChunk chunk = chunk_at(index);
    const Coefficients c = coefficients[chunk.factor];
    const float scale = *clip;
    E* stored = static_cast<E*>(chunk.stored);
    const u64 masters = reinterpret_cast<u64>(chunk.gradient) | reinterpret_cast<u64>(chunk.value) |
                        reinterpret_cast<u64>(chunk.first_moment) | reinterpret_cast<u64>(chunk.second_moment);
    const bool aligned = masters % sizeof(Chunk) == 0 && reinterpret_cast<u64>(stored) % (4 * sizeof(E)) == 0;
    const u32 in_fours = aligned ? chunk.elements / 4 * 4 : 0;
#pragma unroll 1
    for (u32 first = 4 * threadIdx.x; first < in_fours; first += unroll * stride) {
      float g[unroll][4], value[unroll][4], m[unroll][4], v[unroll][4];
#pragma unroll
      for (u32 u = 0; u < unroll; u++) {
        // Where the second group of four does not exist, the first is loaded twice.
        const u32 at = first + u * stride < in_fours ? first + u * stride : first;
        load_four(chunk.gradient + at, g[u]);
        load_four(chunk.first_moment + at, m[u]);
        load_four(chunk.second_moment + at, v[u]);
        load_four(chunk.value + at, value[u]);
      }
#pragma unroll
      for (u32 u = 0; u < unroll; u++) {
        const u32 at = first + u * stride;
        if (at >= in_fours) break;
#pragma unroll
        for (u32 e = 0; e < 4; e++) take_step(c, scale * g[u][e], value[u][e], m[u][e], v[u][e]);
        store_four(chunk.first_moment + at, m[u]);
        store_four(chunk.second_moment + at, v[u]);
        store_four(chunk.value + at, value[u]);
        if (stored != nullptr) store_four(stored + at, value[u]);
      }
    }
#pragma unroll 1
    for (u32 at = in_fours + threadIdx.x; at < chunk.elements; at += threads) {
      float value = load(chunk.value + at), m = load(chunk.first_moment + at), v = load(chunk.second_moment + at);
      take_step(c, scale * load(chunk.gradient + at), value, m, v);
      store(chunk.first_moment + at, m);
      store(chunk.second_moment + at, v);
      store(chunk.value + at, value);
      if (stored != nullptr) store(stored + at, from_f32<E>(value));
    }
  }

  GPU_DEVICE static void take_step(const Coefficients& c, float g, float& value, float& m, float& v) {
    m = gpu::fma(c.first[0], m, c.first[1] * g);
    v = gpu::fma(c.second[0], v, c.second[1] * (g * g));
    const float by = m / gpu::fma(gpu::sqrt(v), c.root, c.eps);
    value = gpu::fma(c.decay, value, -(c.rate * by));
  }

  const LoraAdamw& p;
  SharedMemory shared;
  /// The tickets of this round and of the next.
  u64* word;
  /// The warps' sums of a chunk, in this round and in the next.
  double* sums;
  /// The constants of A and of B.
  Coefficients* coefficients;
  float* clip;
};

}  // namespace optim
