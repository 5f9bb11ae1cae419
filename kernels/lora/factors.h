// Where a launch finds A and B of each segment: in its parameters or, if it has a slot, in the table of the adapter that is
// in the slot while the launch runs.
//
// A slot is one word in device memory: the address of an adapter's table of factors. One store replaces it. So a captured
// graph can switch to another adapter, for every layer at once, and no launch reads a half-written table.
//
// The CTA's second warp copies the factors into shared memory. With a slot these are two dependent loads. They take about as
// long as the ticket, which the first warp draws at the same time, or as the first loads of the operands.
//
// The plan is made for the ranks in the parameters; the ranks in a slot may be lower, down to 0. Missing rows of A count as
// zeros, and so do missing columns of B.
#pragma once

#include <abi.h>
#include <gpu/convert.h>
#include <gpu/memory.h>
#include <gpu/shared.h>
#include <gpu/types.h>
#include <gpu/warp.h>

namespace lora {

using namespace gpu;

class SegmentFactors {
 public:
  /// `table` is room in shared memory for the factors of LORA_MAX_SEGMENTS segments.
  GPU_DEVICE explicit SegmentFactors(LoraFactors* table) : table(table) {}

  static GPU_DEVICE LoraFactors* take_room(SharedMemory& shared) { return shared.take<LoraFactors>(LORA_MAX_SEGMENTS); }

  /// The CTA's second warp must call it; other warps may. A barrier must come before the factors are used. `p` is
  /// LoraForward or LoraDecode.
  template <class P>
  GPU_DEVICE void fetch(const P& p) const {
    const u32 segment = threadIdx.x - warp_size;
    if (segment >= p.segment_count) return;
    table[segment] = p.slot == nullptr ? p.segments[segment].factors : in_slot(p.slot, p.slot_begin + segment);
  }

  GPU_DEVICE const LoraFactors& operator[](u32 segment) const { return table[segment]; }

 private:
  static GPU_DEVICE LoraFactors in_slot(const LoraFactors* const* slot, u32 index) {
    const u64 in_it = load(reinterpret_cast<const u64*>(slot));
    const Chunk* record = reinterpret_cast<const Chunk*>(reinterpret_cast<const LoraFactors*>(in_it) + index);
    const Chunk addresses = load(record), rest = load(record + 1);
    return {pointer(addresses.word[0], addresses.word[1]), pointer(addresses.word[2], addresses.word[3]),
            rest.word[0], rest.word[1], rest.word[2], from_bits(rest.word[3])};
  }

  static GPU_DEVICE const void* pointer(u32 low, u32 high) { return reinterpret_cast<const void*>(u64(high) << 32 | low); }

  LoraFactors* table;
};

}  // namespace lora
