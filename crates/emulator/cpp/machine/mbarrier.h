// mbarriers: barriers in shared memory that count arrivals and bytes.
//
// The state of a barrier is kept outside the kernel's memory. The barrier's 8 bytes in shared memory hold a checksum of that
// state, by which the barrier's next use finds out whether anything else has written there.
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
  bool published = false;  // whether its initialisation is visible to the async proxy
  bool observed = true;    // whether a thread has seen the last phase complete
  uint32_t woken = 0;     // threads that were woken from a wait and have not run yet
  std::vector<Thread*> waiting;
};

struct MBarriers {
  std::map<uint32_t, MBarrier> at;  // by offset in the CTA's slot
};

void mbarrier_init(uint32_t address, uint32_t arrivals);
void mbarrier_invalidate(uint32_t address);
/// Adds `bytes` to those expected, then arrives. With `cluster`, the barrier may be in any CTA of the cluster.
void mbarrier_arrive(uint32_t address, uint32_t bytes, bool cluster, const char* name);
void mbarrier_expect(uint32_t address, uint32_t bytes);
bool mbarrier_test(uint32_t address, uint32_t parity);
/// With `cluster`, acquires what threads of any CTA of the cluster did before they arrived; without, only those of the own CTA.
void mbarrier_wait(uint32_t address, uint32_t parity, bool cluster, const char* name);
/// Makes the barriers that this thread initialised visible to the async proxy.
void publish_initialised_mbarriers();
void fence_mbarrier_init();

/// Returns the barrier that a copy is to complete on, after checking it.
MBarrier& mbarrier_of_copy(Cta& cta, uint32_t offset, const char* name);
/// complete_tx: counts the bytes of a copy that was issued in phase `phase` of the barrier.
void complete_bytes(Cta& cta, uint32_t offset, uint32_t bytes, uint64_t phase,
                    const RaceDetector::AsyncOperation& copy, const char* name);

/// For reports: the barriers at which threads wait.
std::string describe_mbarriers(const Cta& cta);

}  // namespace emu
