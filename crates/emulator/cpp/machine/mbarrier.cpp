#include "mbarrier.h"

#include <cstdio>
#include <cstring>

#include "machine.h"
#include "runtime.h"
#include "shadow.h"

#define SITE __builtin_return_address(0)

namespace emu {

namespace {

constexpr uint32_t bytes_of_barrier = 8;
constexpr uint32_t max_arrivals = (1u << 20) - 1;
constexpr int64_t max_bytes = (1 << 20) - 1;

uint64_t checksum(const MBarrier& b) {
  uint64_t word = b.phase * 0x9E3779B97F4A7C15ull ^ static_cast<uint64_t>(b.pending) << 40 ^ b.count << 20 ^
                  static_cast<uint64_t>(b.bytes);
  return (word ^ word >> 29) * 0xBF58476D1CE4E5B9ull;
}

void store_checksum(MBarrier& b) {
  uint64_t word = checksum(b);
  memcpy(b.at, &word, sizeof word);
}

// The object that stands for a phase's arrivals in the race detector: those of the barrier's own CTA, or of the whole cluster.
const void* phase_key(const MBarrier& b, uint64_t phase, bool cluster) { return b.at + phase % 2 + 2 * cluster; }

MBarrier& find(Cta& cta, uint32_t offset, const char* name) {
  MBarrier* found = nullptr;
  if (cta.mbarriers) {
    auto entry = cta.mbarriers->at.find(offset);
    if (entry != cta.mbarriers->at.end()) found = &entry->second;
  }
  if (!found) fail(Fault::barrier, "%s at 0x%x: no mbarrier was initialised there, or it was invalidated", name, offset);
  uint64_t word, expected = checksum(*found);
  memcpy(&word, found->at, sizeof word);
  if (word != expected) fail(Fault::barrier, "%s at 0x%x: the mbarrier has been overwritten", name, offset);
  return *found;
}

MBarrier& find_own(uint32_t address, const char* name, const void* site) {
  void* p = own_shared_pointer(address, bytes_of_barrier, bytes_of_barrier, name);
  MBarrier& b = find(*self->cta, address & 0xffffff, name);
  machine->race->access(self->clock, p, bytes_of_barrier, RaceDetector::Kind::atomic, site);
  return b;
}

void complete_if_due(MBarrier& b, const char* name) {
  if (b.pending != 0 || b.bytes != 0) {
    store_checksum(b);
    return;
  }
  if (b.woken != 0) {
    fail(Fault::barrier, "%s: phase %llu completes while %u threads that waited for phase %llu have not run yet", name,
         (unsigned long long)b.phase, b.woken, (unsigned long long)b.phase - 1);
  }
  if (!b.observed) {
    fail(Fault::barrier, "%s: phase %llu completes before any thread has waited for phase %llu: there was an arrival too many",
         name, (unsigned long long)b.phase, (unsigned long long)b.phase - 1);
  }
  b.phase++;
  b.pending = b.count;
  b.observed = false;
  // Waiting for a phase also acquires what earlier phases released, as with operations on one atomic.
  for (bool cluster : {false, true}) {
    machine->race->copy_releases(phase_key(b, b.phase, cluster), phase_key(b, b.phase - 1, cluster));
  }
  machine->events++;
  std::vector<Thread*> waiting;
  waiting.swap(b.waiting);
  b.woken = static_cast<uint32_t>(waiting.size());
  for (Thread* thread : waiting) machine->wake(thread);
  store_checksum(b);
}

void expect_bytes(MBarrier& b, uint32_t bytes, const char* name) {
  b.bytes += bytes;
  if (b.bytes > max_bytes) fail(Fault::barrier, "%s: %lld bytes are more than an mbarrier can count", name, (long long)b.bytes);
}

bool has_completed(const MBarrier& b, uint32_t parity, const char* name) {
  if (parity > 1) fail(Fault::barrier, "%s: parity %u is neither 0 nor 1", name, parity);
  return b.phase % 2 != parity;
}

void acquire_phase(MBarrier& b, bool cluster) {
  if (b.phase == 0) return;
  b.observed = true;
  machine->race->acquire(self->clock, phase_key(b, b.phase - 1, cluster));
}

}  // namespace

void mbarrier_init(uint32_t address, uint32_t arrivals) {
  char* p = static_cast<char*>(own_shared_pointer(address, bytes_of_barrier, bytes_of_barrier, "mbarrier_init"));
  if (arrivals == 0 || arrivals > max_arrivals) {
    fail(Fault::barrier, "mbarrier_init for %u arrivals: 1 to 2^20 - 1 are allowed", arrivals);
  }
  machine->shadow->check_no_copy_in_flight(p, bytes_of_barrier, "mbarrier_init");
  auto& all = self->cta->mbarriers;
  if (!all) all = std::make_shared<MBarriers>();
  auto [entry, is_new] = all->at.try_emplace(address & 0xffffff);
  if (!is_new) fail(Fault::barrier, "mbarrier_init at 0x%x, where an mbarrier is already", address & 0xffffff);
  machine->race->access(self->clock, p, bytes_of_barrier, RaceDetector::Kind::write, SITE);
  MBarrier& b = entry->second;
  b.at = p;
  b.count = b.pending = arrivals;
  b.initialiser = self;
  for (uint64_t phase : {0, 1}) {
    for (bool cluster : {false, true}) machine->race->forget(phase_key(b, phase, cluster));
  }
  store_checksum(b);
}

void mbarrier_invalidate(uint32_t address) {
  void* p = own_shared_pointer(address, bytes_of_barrier, bytes_of_barrier, "mbarrier_invalidate");
  MBarrier& b = find(*self->cta, address & 0xffffff, "mbarrier_invalidate");
  if (!b.waiting.empty() || b.woken != 0) {
    fail(Fault::barrier, "mbarrier_invalidate at 0x%x: threads are waiting there", address & 0xffffff);
  }
  machine->race->access(self->clock, p, bytes_of_barrier, RaceDetector::Kind::write, SITE);
  memset(p, 0xff, bytes_of_barrier);
  self->cta->mbarriers->at.erase(address & 0xffffff);
}

void mbarrier_arrive(uint32_t address, uint32_t bytes, bool cluster, const char* name) {
  machine->jitter();
  void* p = cluster ? shared_pointer(address, bytes_of_barrier, name)
                    : own_shared_pointer(address, bytes_of_barrier, bytes_of_barrier, name);
  if (address % bytes_of_barrier) fail(Fault::misaligned, "%s at shared address 0x%x", name, address);
  MBarrier& b = find(*self->cta->cluster->ctas[address >> 24], address & 0xffffff, name);
  machine->race->access(self->clock, p, bytes_of_barrier, RaceDetector::Kind::atomic, SITE);
  if (b.pending == 0) {
    fail(Fault::barrier, "%s at 0x%x: all %u arrivals of the phase have been made already", name, address, b.count);
  }
  expect_bytes(b, bytes, name);
  machine->race->release(self->clock, phase_key(b, b.phase, true));
  if (address >> 24 == self->cta->rank) machine->race->release(self->clock, phase_key(b, b.phase, false));
  b.pending--;
  complete_if_due(b, name);
}

void mbarrier_expect(uint32_t address, uint32_t bytes) {
  MBarrier& b = find_own(address, "mbarrier_expect", SITE);
  expect_bytes(b, bytes, "mbarrier_expect");
  complete_if_due(b, "mbarrier_expect");
}

bool mbarrier_test(uint32_t address, uint32_t parity) {
  MBarrier* b = &find_own(address, "mbarrier_test", SITE);
  if (!has_completed(*b, parity, "mbarrier_test")) {
    // Two tests in a row of the same barrier in the same phase are a spin loop.
    if (self->polled == b->at && self->polled_value == b->phase) {
      machine->park_spinner();
    } else {
      machine->jitter();
    }
    b = &find_own(address, "mbarrier_test", SITE);
  }
  self->polled = b->at;
  self->polled_value = b->phase;
  if (!has_completed(*b, parity, "mbarrier_test")) return false;
  acquire_phase(*b, false);
  return true;
}

void mbarrier_wait(uint32_t address, uint32_t parity, bool cluster, const char* name) {
  machine->jitter();
  MBarrier& b = find_own(address, name, SITE);
  if (!has_completed(b, parity, name)) {
    b.waiting.push_back(self);
    machine->block(name, address & 0xffffff);
    b.woken--;
    find(*self->cta, address & 0xffffff, name);
  }
  acquire_phase(b, cluster);
}

void publish_initialised_mbarriers() {
  if (!self->cta->mbarriers) return;
  for (auto& [offset, b] : self->cta->mbarriers->at) b.published |= b.initialiser == self;
}

void fence_mbarrier_init() { publish_initialised_mbarriers(); }

MBarrier& mbarrier_of_copy(Cta& cta, uint32_t offset, const char* name) {
  MBarrier& b = find(cta, offset, name);
  if (!b.published) {
    fail(Fault::proxy, "%s: no fence_mbarrier_init since the mbarrier at 0x%x was initialised", name, offset);
  }
  return b;
}

void complete_bytes(Cta& cta, uint32_t offset, uint32_t bytes, uint64_t phase, const RaceDetector::AsyncOperation& copy,
                    const char* name) {
  MBarrier& b = find(cta, offset, name);
  if (b.phase != phase) {
    fail(Fault::barrier, "%s: the mbarrier's phase completed before the copy did: the copy's bytes were not expected", name);
  }
  b.bytes -= bytes;
  if (b.pending == 0 && b.bytes < 0) fail(Fault::barrier, "%s: more bytes arrived than the mbarrier's phase expects", name);
  for (bool cluster : {false, true}) machine->race->release(copy, phase_key(b, b.phase, cluster));
  complete_if_due(b, name);
}

std::string describe_mbarriers(const Cta& cta) {
  std::string text;
  if (!cta.mbarriers) return text;
  for (const auto& [offset, b] : cta.mbarriers->at) {
    if (b.waiting.empty()) continue;
    char line[160];
    snprintf(line, sizeof line, "\n  block %u: mbarrier 0x%x, phase %llu: %u of %u arrivals and %lld bytes missing",
             cta.linear, offset, (unsigned long long)b.phase, b.pending, b.count, (long long)b.bytes);
    text += line;
  }
  return text;
}

}  // namespace emu
