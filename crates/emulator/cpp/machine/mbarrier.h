// Barriers in shared memory that count arrivals and bytes.
//
// The barrier's state is kept beside the kernel's memory; its 8 bytes hold a pattern made of the state, so that whatever
// else writes there is found out at the barrier's next use.
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
  uint32_t pending = 0;  // of these, still to come
  int64_t bytes = 0;     // expected less arrived
  uint64_t phase = 0;    // phases completed
  const Thread* initialiser = nullptr;
  bool published = false;  // to the async proxy
  bool observed = true;    // someone has seen the last phase complete
  uint32_t unseen = 0;     // waiters that were woken and have not run yet
  std::vector<Thread*> waiting;
};

struct MBarriers {
  std::map<uint32_t, MBarrier> at;  // by offset in the CTA's slot
};

void mbarrier_init(uint32_t address, uint32_t arrivals);
void mbarrier_invalidate(uint32_t address);
/// One arrival, after `bytes` more are expected. `cluster`: at a barrier of any CTA of the cluster.
void mbarrier_arrive(uint32_t address, uint32_t bytes, bool cluster, const char* name);
void mbarrier_expect(uint32_t address, uint32_t bytes);
bool mbarrier_test(uint32_t address, uint32_t parity);
/// `cluster`: acquires what any CTA of the cluster did before it arrived, not only the barrier's own.
void mbarrier_wait(uint32_t address, uint32_t parity, bool cluster, const char* name);
/// The initialisations by this thread can be seen by the copy engine.
void publish_mbarriers();
void fence_mbarrier_init();

/// The barrier that a copy engine is to tell, checked.
MBarrier& engine_mbarrier(Cta& cta, uint32_t offset, const char* name);
/// The engine has brought bytes; the copy was begun in the phase given.
void complete_bytes(Cta& cta, uint32_t offset, uint32_t bytes, uint64_t phase, const Race::Engine& engine, const char* name);

/// For reports: the barriers that someone waits for.
std::string describe_mbarriers(const Cta& cta);

}  // namespace emu
