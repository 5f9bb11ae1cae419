// Where threads meet: hardware barriers and warp instructions.
#pragma once

#include <cstdint>

#include "machine.h"

namespace emu {

/// Arrives at a barrier of `expected` threads, and waits for the phase to end unless told not to.
void arrive(Barrier& barrier, uint32_t expected, bool wait, const char* name, uint64_t detail);

/// __syncthreads: counts the threads of the CTA that have not exited.
void sync_block();
/// The same, and whether any thread said so.
bool sync_block_or(bool vote);
/// bar.sync (wait) and bar.arrive on one of 16 barriers.
void named_barrier(uint32_t id, uint32_t threads, bool wait);

/// A thread has exited: barriers that count the living may be complete now.
void thread_left(Cta& cta);

/// What a warp instruction does once all its lanes are there: `argument[lane]` is what each lane brought.
using WarpFunction = void (*)(const Rendezvous& lanes);
/// Waits until every lane of `members` has come to the same instruction, which the last one carries out for all.
void warp_instruction(uint32_t members, const char* name, WarpFunction function, void* argument);

}  // namespace emu
