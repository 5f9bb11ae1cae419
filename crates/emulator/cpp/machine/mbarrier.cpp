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
constexpr uint32_t most_arrivals = (1u << 20) - 1;
constexpr int64_t most_bytes = (1 << 20) - 1;

uint64_t pattern(const MBarrier& b) {
  uint64_t word = b.phase * 0x9E3779B97F4A7C15ull ^ static_cast<uint64_t>(b.pending) << 40 ^ b.count << 20 ^
                  static_cast<uint64_t>(b.bytes);
  return (word ^ word >> 29) * 0xBF58476D1CE4E5B9ull;
}

void seal(MBarrier& b) {
  uint64_t word = pattern(b);
  memcpy(b.at, &word, sizeof word);
}

// The race detector's key for the arrivals of a phase: those of the barrier's own CTA, or those of the whole cluster.
const void* phase_key(const MBarrier& b, uint64_t phase, bool cluster) { return b.at + phase % 2 + 2 * cluster; }

MBarrier& find(Cta& cta, uint32_t offset, const char* name) {
  MBarrier* found = nullptr;
  if (cta.mbarriers) {
    auto entry = cta.mbarriers->at.find(offset);
    if (entry != cta.mbarriers->at.end()) found = &entry->second;
  }
  if (!found) fail(Fault::barrier, "%s at 0x%x: there is no mbarrier, or none any more", name, offset);
  uint64_t word, expected = pattern(*found);
  memcpy(&word, found->at, sizeof word);
  if (word != expected) fail(Fault::barrier, "%s at 0x%x: the mbarrier has been overwritten", name, offset);
  return *found;
}

MBarrier& find_own(uint32_t address, const char* name, const void* site) {
  void* p = own_shared_pointer(address, bytes_of_barrier, bytes_of_barrier, name);
  MBarrier& b = find(*self->cta, address & 0xffffff, name);
  machine->race->access(self->clock, p, bytes_of_barrier, Race::Kind::atomic, site);
  return b;
}

void complete_if_due(MBarrier& b, const char* name) {
  if (b.pending != 0 || b.bytes != 0) {
    seal(b);
    return;
  }
  if (b.unseen != 0) {
    fail(Fault::barrier, "%s: phase %llu completes while %u threads have not yet run since their phase %llu completed", name,
         (unsigned long long)b.phase, b.unseen, (unsigned long long)b.phase - 1);
  }
  if (!b.observed) {
    fail(Fault::barrier, "%s: phase %llu completes and nobody has waited for phase %llu: an arrival too many", name,
         (unsigned long long)b.phase, (unsigned long long)b.phase - 1);
  }
  b.phase++;
  b.pending = b.count;
  b.observed = false;
  // Arrivals of a phase are ordered after all earlier phases, like operations on one atomic.
  for (bool cluster : {false, true}) {
    machine->race->inherit(phase_key(b, b.phase, cluster), phase_key(b, b.phase - 1, cluster));
  }
  machine->events++;
  std::vector<Thread*> waiting;
  waiting.swap(b.waiting);
  b.unseen = static_cast<uint32_t>(waiting.size());
  for (Thread* thread : waiting) machine->wake(thread);
  seal(b);
}

void expect_bytes(MBarrier& b, uint32_t bytes, const char* name) {
  b.bytes += bytes;
  if (b.bytes > most_bytes) fail(Fault::barrier, "%s: %lld bytes are more than an mbarrier counts", name, (long long)b.bytes);
}

bool has_completed(const MBarrier& b, uint32_t parity, const char* name) {
  if (parity > 1) fail(Fault::barrier, "%s: a parity is 0 or 1, not %u", name, parity);
  return b.phase % 2 != parity;
}

void observe(MBarrier& b, bool cluster) {
  if (b.phase == 0) return;
  b.observed = true;
  machine->race->acquire(self->clock, phase_key(b, b.phase - 1, cluster));
}

}  // namespace

void mbarrier_init(uint32_t address, uint32_t arrivals) {
  char* p = static_cast<char*>(own_shared_pointer(address, bytes_of_barrier, bytes_of_barrier, "mbarrier_init"));
  if (arrivals == 0 || arrivals > most_arrivals) fail(Fault::barrier, "mbarrier_init: a phase of %u arrivals", arrivals);
  machine->shadow->expect_landed(p, bytes_of_barrier, "mbarrier_init");
  auto& all = self->cta->mbarriers;
  if (!all) all = std::make_shared<MBarriers>();
  auto [entry, is_new] = all->at.try_emplace(address & 0xffffff);
  if (!is_new) fail(Fault::barrier, "mbarrier_init at 0x%x, where an mbarrier is already", address & 0xffffff);
  machine->race->access(self->clock, p, bytes_of_barrier, Race::Kind::write, SITE);
  MBarrier& b = entry->second;
  b.at = p;
  b.count = b.pending = arrivals;
  b.initialiser = self;
  for (uint64_t phase : {0, 1}) {
    for (bool cluster : {false, true}) machine->race->forget(phase_key(b, phase, cluster));
  }
  seal(b);
}

void mbarrier_invalidate(uint32_t address) {
  void* p = own_shared_pointer(address, bytes_of_barrier, bytes_of_barrier, "mbarrier_invalidate");
  MBarrier& b = find(*self->cta, address & 0xffffff, "mbarrier_invalidate");
  if (!b.waiting.empty() || b.unseen != 0) {
    fail(Fault::barrier, "mbarrier_invalidate at 0x%x: threads are waiting there", address & 0xffffff);
  }
  machine->race->access(self->clock, p, bytes_of_barrier, Race::Kind::write, SITE);
  memset(p, 0xff, bytes_of_barrier);
  self->cta->mbarriers->at.erase(address & 0xffffff);
}

void mbarrier_arrive(uint32_t address, uint32_t bytes, bool cluster, const char* name) {
  machine->jitter();
  void* p = cluster ? shared_pointer(address, bytes_of_barrier, name)
                    : own_shared_pointer(address, bytes_of_barrier, bytes_of_barrier, name);
  if (address % bytes_of_barrier) fail(Fault::misaligned, "%s at shared address 0x%x", name, address);
  MBarrier& b = find(*self->cta->cluster->ctas[address >> 24], address & 0xffffff, name);
  machine->race->access(self->clock, p, bytes_of_barrier, Race::Kind::atomic, SITE);
  if (b.pending == 0) {
    fail(Fault::barrier, "%s at 0x%x: all %u arrivals of the phase have been made", name, address, b.count);
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
  observe(*b, false);
  return true;
}

void mbarrier_wait(uint32_t address, uint32_t parity, bool cluster, const char* name) {
  machine->jitter();
  MBarrier& b = find_own(address, name, SITE);
  if (!has_completed(b, parity, name)) {
    b.waiting.push_back(self);
    machine->block(name, address & 0xffffff);
    b.unseen--;
    find(*self->cta, address & 0xffffff, name);
  }
  observe(b, cluster);
}

void publish_mbarriers() {
  if (!self->cta->mbarriers) return;
  for (auto& [offset, b] : self->cta->mbarriers->at) b.published |= b.initialiser == self;
}

void fence_mbarrier_init() { publish_mbarriers(); }

MBarrier& engine_mbarrier(Cta& cta, uint32_t offset, const char* name) {
  MBarrier& b = find(cta, offset, name);
  if (!b.published) {
    fail(Fault::proxy, "%s: the mbarrier at 0x%x was initialised without fence_mbarrier_init since", name, offset);
  }
  return b;
}

void complete_bytes(Cta& cta, uint32_t offset, uint32_t bytes, uint64_t phase, const Race::Engine& engine,
                    const char* name) {
  MBarrier& b = find(cta, offset, name);
  if (b.phase != phase) {
    fail(Fault::barrier, "%s: the phase in which it was issued completed before its bytes came: they were not expected", name);
  }
  b.bytes -= bytes;
  if (b.pending == 0 && b.bytes < 0) fail(Fault::barrier, "%s: more bytes came than the phase expects", name);
  for (bool cluster : {false, true}) machine->race->release(engine, phase_key(b, b.phase, cluster));
  complete_if_due(b, name);
}

std::string describe_mbarriers(const Cta& cta) {
  std::string text;
  if (!cta.mbarriers) return text;
  for (const auto& [offset, b] : cta.mbarriers->at) {
    if (b.waiting.empty()) continue;
    char line[160];
    snprintf(line, sizeof line, "\n  block %u: mbarrier 0x%x, phase %llu: %u of %u arrivals and %lld bytes to come",
             cta.linear, offset, (unsigned long long)b.phase, b.pending, b.count, (long long)b.bytes);
    text += line;
  }
  return text;
}

}  // namespace emu
