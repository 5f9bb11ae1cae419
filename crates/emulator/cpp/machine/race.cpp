#include "race.h"

#include <sys/mman.h>

#include <cstdio>

#include "fault.h"
#include "machine.h"
#include "site.h"

namespace emu {

#ifdef EMU_RACE

namespace {
constexpr size_t granule = 2;  // one record for every 2 bytes: no kernel stores single bytes
}

RaceDetector::RaceDetector(Memory& memory) : memory_(memory) {
  records_ = static_cast<AccessRecord*>(reserve(Memory::arena_bytes / granule * sizeof(AccessRecord)));
}

RaceDetector::~RaceDetector() { unreserve(records_, Memory::arena_bytes / granule * sizeof(AccessRecord)); }

RaceDetector::AccessRecord* RaceDetector::record(const void* p) const { return records_ + memory_.offset(p) / granule; }

void RaceDetector::start_launch(uint32_t threads) {
  threads_ = threads;
  next_async_clock_ = 0;
  clocks_.assign(threads + async_clocks, Clock{});
  auto nothing = std::make_shared<const Vector>(threads + async_clocks, 0u);
  for (Clock& clock : clocks_) clock.vector = nothing, clock.time = clock.start_time = 1;
  objects_.clear();
  // Each launch is ordered after the launches before it.
  madvise(records_, Memory::arena_bytes / granule * sizeof(AccessRecord), MADV_DONTNEED);
}

void RaceDetector::end_launch() {
  clocks_.clear();
  objects_.clear();
  merged_from_ = merged_with_ = merged_ = nullptr;
}

void RaceDetector::start_cta(const Cta& cta) {
  size_t first = memory_.offset(cta.shared) / granule;
  madvise(records_ + first, Memory::slot_bytes / granule * sizeof(AccessRecord), MADV_DONTNEED);
}

void RaceDetector::start_thread(const Thread& thread) {
  Clock& clock = clocks_[thread.clock];
  clock.vector = std::make_shared<const Vector>(clocks_.size(), 0u);
  if (thread.rank != 0) clock.vector = clocks_[thread.clock - thread.rank].vector;
  tick(thread.clock);
  clock.start_time = clock.time;
}

void RaceDetector::tick(uint32_t clock) {
  if (++clocks_[clock].time >> clock_bits) {
    fail(Fault::resources, "a thread has more synchronisation events than its clock in the race detector can count");
  }
}

bool RaceDetector::happens_before(uint32_t epoch, const Actor& actor) {
  uint32_t by = clock_of(epoch), at = time_of(epoch);
  if (by == clock_of(actor.epoch) && at >= actor.start_time) return true;
  if (by == actor.parent && at >= actor.parent_start && at <= actor.parent_time) return true;
  return (*actor.vector)[by] >= at;
}

RaceDetector::Actor RaceDetector::actor(uint32_t clock) const {
  const Clock& c = clocks_[clock];
  return {clock << clock_bits | c.time, c.start_time, no_clock, 0, 0, c.vector.get()};
}

RaceDetector::Actor RaceDetector::actor(const AsyncOperation& operation) {
  return {operation.id << clock_bits | operation.time,
          operation.time,
          operation.parent,
          operation.parent_start,
          operation.parent_time,
          operation.vector.get()};
}

RaceDetector::Vector RaceDetector::view(uint32_t clock) const {
  Vector vector = *clocks_[clock].vector;
  vector[clock] = clocks_[clock].time;
  return vector;
}

void RaceDetector::report(const char* what, const Actor& actor, uint32_t epoch, const void* p, const void* site,
                  uint32_t other_site) {
  auto name = [&](uint32_t c, char* text, size_t n) {
    if (c >= threads_) {
      snprintf(text, n, "an asynchronous operation");
    } else {
      snprintf(text, n, "resident CTA %u thread %u", c / machine->shape.threads, c % machine->shape.threads);
    }
    return text;
  };
  char mine[64], theirs[64];
  bool shared = memory_.is_shared(p);
  size_t at = shared ? (memory_.offset(p) - Memory::global_bytes) % Memory::slot_bytes : memory_.offset(p);
  fail(Fault::race, "%s: %s memory at 0x%zx, %s at @0x%x, earlier %s at @0x%x", what, shared ? "shared" : "global", at,
       name(clock_of(actor.epoch), mine, sizeof mine), site_number(site), name(clock_of(epoch), theirs, sizeof theirs),
       other_site);
}

void RaceDetector::access(uint32_t clock, const void* p, size_t n, Kind kind, const void* site) {
  if (clocks_.empty()) return;
  access(actor(clock), p, n, kind, site);
}

void RaceDetector::access(const AsyncOperation& operation, const void* p, size_t n, Kind kind, const void* site) {
  if (clocks_.empty()) return;
  access(actor(operation), p, n, kind, site);
}

void RaceDetector::access(const Actor& actor, const void* p, size_t n, Kind kind, const void* site) {
  if (memory_.offset(p) >= Memory::arena_bytes) return;
  const uint32_t me = actor.epoch;
  const bool atomic = kind == Kind::atomic;
  AccessRecord* end = record(static_cast<const char*>(p) + n - 1) + 1;
  for (AccessRecord* at = record(p); at < end; at++) {
    const void* address = static_cast<const char*>(p) + (at - record(p)) * granule;
    if (kind == Kind::read && at->writer == 0 && memory_.is_shared(p)) {
      fail(Fault::uninitialised, "shared memory at 0x%zx is read before anything wrote it, at @0x%x",
           (memory_.offset(address) - Memory::global_bytes) % Memory::slot_bytes, site_number(site));
    }
    if (at->writer != me && at->writer && !(atomic && at->writer_atomic) && !happens_before(at->writer, actor)) {
      report(kind == Kind::read ? "read after an unordered write" : "write after an unordered write", actor, at->writer,
             address, site, at->writer_site);
    }
    if (kind == Kind::read) {
      // A record has room for three readers. This one takes the place of a reader that is ordered before it.
      int slot = -1;
      for (int i = 0; i < 3 && slot < 0; i++) {
        if (at->reader[i] == 0 || happens_before(at->reader[i], actor)) slot = i;
      }
      if (slot < 0) slot = static_cast<int>(me % 3);
      at->reader[slot] = me;
      at->reader_site[slot] = site_number(site);
      continue;
    }
    for (int i = 0; i < 3; i++) {
      if (at->reader[i] && !happens_before(at->reader[i], actor)) {
        report("write after an unordered read", actor, at->reader[i], address, site, at->reader_site[i]);
      }
      at->reader[i] = 0;
    }
    at->writer = me;
    at->writer_atomic = atomic;
    at->writer_site = site_number(site);
  }
}

void RaceDetector::barrier(Thread* const* arrived, size_t arrivals, Thread* const* waiting, size_t waiters) {
  Vector all = *clocks_[arrived[0]->clock].vector;
  const Vector* last = clocks_[arrived[0]->clock].vector.get();
  for (size_t i = 0; i < arrivals; i++) {
    const Clock& clock = clocks_[arrived[i]->clock];
    if (clock.vector.get() != last) {
      last = clock.vector.get();
      for (size_t k = 0; k < all.size(); k++) all[k] = all[k] > (*last)[k] ? all[k] : (*last)[k];
    }
  }
  for (size_t i = 0; i < arrivals; i++) all[arrived[i]->clock] = clocks_[arrived[i]->clock].time;
  auto vector = std::make_shared<const Vector>(std::move(all));
  for (size_t i = 0; i < arrivals; i++) tick(arrived[i]->clock);
  for (size_t i = 0; i < waiters; i++) clocks_[waiting[i]->clock].vector = vector;
}

void RaceDetector::release(Vector mine, const void* object) {
  auto& released = objects_[object];
  if (released) {
    for (size_t k = 0; k < mine.size(); k++) mine[k] = mine[k] > (*released)[k] ? mine[k] : (*released)[k];
  }
  released = std::make_shared<const Vector>(std::move(mine));
}

void RaceDetector::release(uint32_t clock, const void* object) {
  release(view(clock), object);
  tick(clock);
}

void RaceDetector::release(const AsyncOperation& operation, const void* object) {
  Vector its = *operation.vector;
  if (operation.parent != no_clock && its[operation.parent] < operation.parent_time) {
    its[operation.parent] = operation.parent_time;
  }
  its[operation.id] = operation.time;
  release(std::move(its), object);
}

void RaceDetector::acquire(uint32_t clock, const void* object) {
  auto found = objects_.find(object);
  if (found == objects_.end()) return;
  auto& vector = clocks_[clock].vector;
  if (vector != merged_from_ || found->second != merged_with_) {
    merged_from_ = vector;
    merged_with_ = found->second;
    Vector mine = *vector;
    for (size_t k = 0; k < mine.size(); k++) mine[k] = mine[k] > (*merged_with_)[k] ? mine[k] : (*merged_with_)[k];
    merged_ = std::make_shared<const Vector>(std::move(mine));
  }
  vector = merged_;
}

void RaceDetector::forget(const void* object) { objects_.erase(object); }

void RaceDetector::copy_releases(const void* to, const void* from) {
  auto found = objects_.find(from);
  if (found == objects_.end()) {
    objects_.erase(to);
  } else {
    auto vector = found->second;
    objects_[to] = vector;
  }
}

RaceDetector::AsyncOperation RaceDetector::begin_operation(uint32_t clock) {
  const Clock& parent = clocks_[clock];
  AsyncOperation operation;
  operation.id = threads_ + next_async_clock_++ % async_clocks;
  tick(operation.id);
  operation.time = clocks_[operation.id].time;
  operation.parent = clock;
  operation.parent_start = parent.start_time;
  operation.parent_time = parent.time;
  operation.vector = parent.vector;
  // What the issuing thread does from now on is not ordered before the operation.
  tick(clock);
  return operation;
}

bool RaceDetector::is_current(const AsyncOperation& operation, uint32_t clock) const {
  const Clock& parent = clocks_[clock];
  return operation.parent == clock && operation.parent_time + 1 == parent.time && operation.vector == parent.vector;
}

RaceDetector::AsyncOperation RaceDetector::begin_operation(Thread* const* threads, size_t n) {
  AsyncOperation operation;
  operation.id = threads_ + next_async_clock_++ % async_clocks;
  tick(operation.id);
  operation.time = clocks_[operation.id].time;
  // Threads that share a vector are merged once.
  std::unordered_map<const Vector*, std::vector<uint32_t>> sharing;
  for (size_t i = 0; i < n; i++) sharing[clocks_[threads[i]->clock].vector.get()].push_back(threads[i]->clock);
  Vector least = *sharing.begin()->first;
  for (const auto& [vector, clocks] : sharing) {
    for (size_t k = 0; k < least.size(); k++) least[k] = least[k] < (*vector)[k] ? least[k] : (*vector)[k];
  }
  // A vector does not hold its owner's latest time, so the entry of a thread that shares its vector with no other is corrected.
  for (const auto& [vector, clocks] : sharing) {
    if (clocks.size() > 1) continue;
    uint32_t latest = clocks_[clocks[0]].time;
    for (const auto& [others, same] : sharing) {
      if (others != vector && (*others)[clocks[0]] < latest) latest = (*others)[clocks[0]];
    }
    least[clocks[0]] = latest;
  }
  operation.vector = std::make_shared<const Vector>(std::move(least));
  return operation;
}

void RaceDetector::join(Thread* const* threads, size_t n, const AsyncOperation& operation) {
  std::shared_ptr<const Vector> before, after;
  for (size_t i = 0; i < n; i++) {
    auto& vector = clocks_[threads[i]->clock].vector;
    if ((*vector)[operation.id] >= operation.time) continue;
    if (vector != before) {
      Vector mine = *vector;
      mine[operation.id] = operation.time;
      before = vector;
      after = std::make_shared<const Vector>(std::move(mine));
    }
    vector = after;
  }
}

void RaceDetector::note_proxy_fence(uint32_t clock, bool shared) {
  clocks_[clock].fence_time[shared] = clocks_[clock].time;
  clocks_[clock].vector_at_fence[shared] = clocks_[clock].vector;
  tick(clock);
}

bool RaceDetector::proxy_fenced(uint32_t clock, const void* p, size_t n, uint32_t* writer) const {
  const bool shared = memory_.is_shared(p);
  const uint32_t cta_threads = machine->shape.threads;
  const Vector* at_fence = clocks_[clock].vector_at_fence[shared].get();
  const AccessRecord* end = record(static_cast<const char*>(p) + n - 1) + 1;
  for (const AccessRecord* at = record(p); at < end; at++) {
    uint32_t by = clock_of(at->writer), time = time_of(at->writer);
    if (at->writer == 0 || by >= threads_) continue;
    const bool same_cta = by / cta_threads == clock / cta_threads;
    // A multicast copy writes to other CTAs' shared memory, where the writer's own fence is enough as well.
    if ((same_cta || shared) && time <= clocks_[by].fence_time[shared]) continue;
    if (!(same_cta && shared) && at_fence && (*at_fence)[by] >= time) continue;
    *writer = by % cta_threads;
    return false;
  }
  return true;
}

bool RaceDetector::knows_started(uint32_t clock, const Cta& cta) const {
  const Vector& vector = *clocks_[clock].vector;
  for (const Thread* thread : cta.threads) {
    if (vector[thread->clock] >= clocks_[thread->clock].start_time) return true;
  }
  return false;
}

bool RaceDetector::may_exit(const Cta& cta) const {
  Vector all(clocks_.size(), 0u);
  const Vector* last = nullptr;
  for (const Thread* thread : cta.threads) {
    const Clock& clock = clocks_[thread->clock];
    if (clock.vector.get() != last) {
      last = clock.vector.get();
      for (size_t k = 0; k < all.size(); k++) all[k] = all[k] > (*last)[k] ? all[k] : (*last)[k];
    }
  }
  for (const Thread* thread : cta.threads) all[thread->clock] = clocks_[thread->clock].time;
  auto is_ordered = [&](uint32_t epoch) { return epoch == 0 || all[clock_of(epoch)] >= time_of(epoch); };
  for (const SharedArray& piece : cta.shared_arrays) {
    const AccessRecord* end = record(cta.shared + piece.offset + piece.bytes - 1) + 1;
    for (const AccessRecord* at = record(cta.shared + piece.offset); at < end; at++) {
      if (!is_ordered(at->writer)) return false;
      for (uint32_t reader : at->reader) {
        if (!is_ordered(reader)) return false;
      }
    }
  }
  return true;
}

#else

RaceDetector::RaceDetector(Memory& memory) : memory_(memory) {}
RaceDetector::~RaceDetector() = default;
void RaceDetector::start_launch(uint32_t) {}
void RaceDetector::end_launch() {}
void RaceDetector::start_cta(const Cta&) {}
void RaceDetector::start_thread(const Thread&) {}
void RaceDetector::access(uint32_t, const void*, size_t, Kind, const void*) {}
void RaceDetector::barrier(Thread* const*, size_t, Thread* const*, size_t) {}
void RaceDetector::release(uint32_t, const void*) {}
void RaceDetector::acquire(uint32_t, const void*) {}
void RaceDetector::forget(const void*) {}
RaceDetector::AsyncOperation RaceDetector::begin_operation(uint32_t) { return {}; }
RaceDetector::AsyncOperation RaceDetector::begin_operation(Thread* const*, size_t) { return {}; }
bool RaceDetector::is_current(const AsyncOperation&, uint32_t) const { return true; }
void RaceDetector::access(const AsyncOperation&, const void*, size_t, Kind, const void*) {}
void RaceDetector::release(const AsyncOperation&, const void*) {}
void RaceDetector::join(Thread* const*, size_t, const AsyncOperation&) {}
void RaceDetector::copy_releases(const void*, const void*) {}
void RaceDetector::note_proxy_fence(uint32_t, bool) {}
bool RaceDetector::proxy_fenced(uint32_t, const void*, size_t, uint32_t*) const { return true; }
bool RaceDetector::knows_started(uint32_t, const Cta&) const { return true; }
bool RaceDetector::may_exit(const Cta&) const { return true; }

#endif

}  // namespace emu
