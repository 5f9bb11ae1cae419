// Which A and B each segment of a launch has: those of its parameters or, where it has a slot, those of whatever adapter is in
// the slot as it runs.
//
// A slot is one word in device memory, the address of an adapter's table of factors. It changes in one store, so another
// adapter takes its place under a captured graph, for every layer at once, and no launch sees a table half written.
//
// The CTA's second warp copies the factors into shared memory. The slot's two loads, one after the other, take about as long as
// the ticket that the first warp draws meanwhile, or as the first operands that are under way.
//
// The plan holds the segments' own ranks; those in a slot may be lower, down to none. Rows of A that are not there count as
// zeros, and so does what lies beyond the last of B's.
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
  /// In shared memory: room for those of so many segments as there can be.
  GPU_DEVICE explicit SegmentFactors(LoraFactors* table) : table(table) {}

  static GPU_DEVICE LoraFactors* take_room(SharedMemory& shared) { return shared.take<LoraFactors>(LORA_MAX_SEGMENTS); }

  /// By all threads of the CTA; a barrier of theirs comes before the factors are used. `p` is LoraForward or LoraDecode.
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
