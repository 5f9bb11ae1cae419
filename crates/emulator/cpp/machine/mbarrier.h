// Barriers in shared memory that count arrivals and bytes.
//
// The state of a barrier is kept outside the kernel's memory. Its 8 bytes hold a checksum of the state, so that the
// barrier's next use finds any other write to them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "race.h"

namespace emu {

struct Cta;
struct Thread;

struct MBarrier {
  char* at = nullptr;
  uint32_t count = 0;    // arrivals that each phase expects
  uint32_t pending = 0;  // arrivals of this phase that are still to come
  int64_t bytes = 0;     // bytes expected less bytes arrived
  uint64_t phase = 0;    // phases completed
  const Thread* initialiser = nullptr;
  bool published = false;  // visible to the async proxy
  bool observed = true;    // a thread has seen the last phase complete
  uint32_t unseen = 0;     // waiters that were woken and have not run yet
  std::vector<Thread*> waiting;
};

struct MBarriers {
  std::map<uint32_t, MBarrier> at;  // by offset in the CTA's slot
};

void mbarrier_init(uint32_t address, uint32_t arrivals);
void mbarrier_invalidate(uint32_t address);
/// Expects `bytes` more, then arrives. `cluster`: the barrier may be in any CTA of the cluster.
void mbarrier_arrive(uint32_t address, uint32_t bytes, bool cluster, const char* name);
void mbarrier_expect(uint32_t address, uint32_t bytes);
bool mbarrier_test(uint32_t address, uint32_t parity);
/// `cluster`: acquires what any CTA of the cluster did before it arrived, not only the barrier's own.
void mbarrier_wait(uint32_t address, uint32_t parity, bool cluster, const char* name);
/// Makes this thread's initialisations visible to the copy engine.
void publish_mbarriers();
void fence_mbarrier_init();

/// Returns the barrier at which a copy is to complete, after checking it.
MBarrier& engine_mbarrier(Cta& cta, uint32_t offset, const char* name);
/// Counts the bytes of a copy that was issued in phase `phase`.
void complete_bytes(Cta& cta, uint32_t offset, uint32_t bytes, uint64_t phase, const Race::Engine& engine, const char* name);

/// For reports: the barriers at which threads wait.
std::string describe_mbarriers(const Cta& cta);

}  // namespace emu
