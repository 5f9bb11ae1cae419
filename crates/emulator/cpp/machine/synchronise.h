// The hardware barriers of a CTA, and how warp instructions wait for their lanes.
#pragma once

#include <cstdint>

#include "machine.h"

namespace emu {

/// Arrives at a barrier of `expected` threads and, if `wait`, waits for the phase to end.
void arrive(Barrier& barrier, uint32_t expected, bool wait, const char* name, uint64_t detail);

/// __syncthreads: counts the threads of the CTA that have not exited.
void sync_block();
/// The same; returns whether any thread voted true.
bool sync_block_or(bool vote);
/// bar.sync (wait) and bar.arrive on one of 16 barriers.
void named_barrier(uint32_t id, uint32_t threads, bool wait);

/// Called when a thread has exited, because that may complete barriers that count live threads.
void on_thread_exit(Cta& cta);

/// What a warp instruction does once all its lanes have arrived: `argument[lane]` is the argument of each lane.
using WarpFunction = void (*)(const WarpInstruction& lanes);
/// Waits until every lane of `members` has arrived at the same instruction, which the last one carries out for all.
void warp_instruction(uint32_t members, const char* name, WarpFunction function, void* argument);

}  // namespace emu
