#include "race.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdio>

#include "fault.h"
#include "machine.h"

namespace emu {

uint32_t site_offset(const void* site) {
  static const char* base = [] {
    Dl_info info;
    return dladdr(reinterpret_cast<const void*>(&site_offset), &info) ? static_cast<const char*>(info.dli_fbase) : nullptr;
  }();
  return site ? static_cast<uint32_t>(static_cast<const char*>(site) - base) : 0;
}

#ifdef EMU_RACE

namespace {
constexpr size_t granule = 2;  // no kernel stores single bytes
}

Race::Race(Memory& memory) : memory_(memory) {
  places_ = static_cast<Place*>(reserve(Memory::arena_bytes / granule * sizeof(Place)));
}

Race::~Race() { unreserve(places_, Memory::arena_bytes / granule * sizeof(Place)); }

Race::Place* Race::place(const void* p) const { return places_ + memory_.offset(p) / granule; }

void Race::start_launch(uint32_t threads) {
  threads_ = threads;
  next_engine_ = 0;
  clocks_.assign(threads + engines, Clock{});
  auto nothing = std::make_shared<const Vector>(threads + engines, 0u);
  for (Clock& clock : clocks_) clock = {nothing, 1, 1, 0};
  objects_.clear();
  // Launches are ordered among each other.
  madvise(places_, Memory::arena_bytes / granule * sizeof(Place), MADV_DONTNEED);
}

void Race::end_launch() {
  clocks_.clear();
  objects_.clear();
}

void Race::start_cta(const Cta& cta) {
  size_t first = memory_.offset(cta.shared) / granule;
  madvise(places_ + first, Memory::slot_bytes / granule * sizeof(Place), MADV_DONTNEED);
}

void Race::start_thread(const Thread& thread) {
  Clock& clock = clocks_[thread.clock];
  clock.told = std::make_shared<const Vector>(clocks_.size(), 0u);
  if (thread.rank != 0) clock.told = clocks_[thread.clock - thread.rank].told;
  tick(thread.clock);
  clock.born = clock.own;
  clock.fenced = 0;
}

void Race::tick(uint32_t clock) {
  if (++clocks_[clock].own >> clock_bits) fail(Fault::resources, "the race detector's clock of a thread is full");
}

bool Race::knows(uint32_t clock, uint32_t epoch) const {
  const Clock& mine = clocks_[clock];
  if (who(epoch) == clock && when(epoch) >= mine.born) return true;
  return (*mine.told)[who(epoch)] >= when(epoch);
}

Race::Vector Race::view(uint32_t clock) const {
  Vector vector = *clocks_[clock].told;
  vector[clock] = clocks_[clock].own;
  return vector;
}

void Race::report(const char* what, uint32_t clock, uint32_t epoch, const void* p, const void* site,
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
       name(clock, mine, sizeof mine), site_offset(site), name(who(epoch), theirs, sizeof theirs), other_site);
}

void Race::access(uint32_t clock, const void* p, size_t n, Kind kind, const void* site) {
  if (clocks_.empty() || memory_.offset(p) >= Memory::arena_bytes) return;
  const uint32_t me = clock << clock_bits | clocks_[clock].own;
  const bool atomic = kind == Kind::atomic;
  Place* end = place(static_cast<const char*>(p) + n - 1) + 1;
  for (Place* at = place(p); at < end; at++) {
    const void* address = static_cast<const char*>(p) + (at - place(p)) * granule;
    if (kind == Kind::read && at->writer == 0 && memory_.is_shared(p)) {
      fail(Fault::uninitialised, "shared memory at 0x%zx is read before anything wrote it, at @0x%x",
           (memory_.offset(address) - Memory::global_bytes) % Memory::slot_bytes, site_offset(site));
    }
    if (at->writer != me && at->writer && !(atomic && at->writer_atomic) && !knows(clock, at->writer)) {
      report(kind == Kind::read ? "read after an unordered write" : "write after an unordered write", clock, at->writer,
             address, site, at->writer_site);
    }
    if (kind == Kind::read) {
      // Readers that this one has been told of need not be remembered.
      int slot = -1;
      for (int i = 0; i < 3 && slot < 0; i++) {
        if (at->reader[i] == 0 || knows(clock, at->reader[i])) slot = i;
      }
      if (slot < 0) slot = static_cast<int>(me % 3);
      at->reader[slot] = me;
      at->reader_site[slot] = site_offset(site);
      continue;
    }
    for (int i = 0; i < 3; i++) {
      if (at->reader[i] && !knows(clock, at->reader[i])) {
        report("write after an unordered read", clock, at->reader[i], address, site, at->reader_site[i]);
      }
      at->reader[i] = 0;
    }
    at->writer = me;
    at->writer_atomic = atomic;
    at->writer_site = site_offset(site);
  }
}

void Race::barrier(Thread* const* arrived, size_t arrivals, Thread* const* waiting, size_t waiters) {
  Vector all = *clocks_[arrived[0]->clock].told;
  const Vector* last = clocks_[arrived[0]->clock].told.get();
  for (size_t i = 0; i < arrivals; i++) {
    const Clock& clock = clocks_[arrived[i]->clock];
    if (clock.told.get() != last) {
      last = clock.told.get();
      for (size_t k = 0; k < all.size(); k++) all[k] = all[k] > (*last)[k] ? all[k] : (*last)[k];
    }
  }
  for (size_t i = 0; i < arrivals; i++) all[arrived[i]->clock] = clocks_[arrived[i]->clock].own;
  auto told = std::make_shared<const Vector>(std::move(all));
  for (size_t i = 0; i < arrivals; i++) tick(arrived[i]->clock);
  for (size_t i = 0; i < waiters; i++) clocks_[waiting[i]->clock].told = told;
}

void Race::release(uint32_t clock, const void* object) {
  Vector mine = view(clock);
  auto& known = objects_[object];
  if (known) {
    for (size_t k = 0; k < mine.size(); k++) mine[k] = mine[k] > (*known)[k] ? mine[k] : (*known)[k];
  }
  known = std::make_shared<const Vector>(std::move(mine));
  tick(clock);
}

void Race::acquire(uint32_t clock, const void* object) {
  auto found = objects_.find(object);
  if (found == objects_.end()) return;
  Vector mine = *clocks_[clock].told;
  for (size_t k = 0; k < mine.size(); k++) mine[k] = mine[k] > (*found->second)[k] ? mine[k] : (*found->second)[k];
  clocks_[clock].told = std::make_shared<const Vector>(std::move(mine));
}

void Race::forget(const void* object) { objects_.erase(object); }

uint32_t Race::begin_engine(uint32_t clock) {
  uint32_t engine = threads_ + next_engine_++ % engines;
  Vector mine = view(clock);
  clocks_[engine].told = std::make_shared<const Vector>(std::move(mine));
  tick(engine);
  clocks_[engine].born = clocks_[engine].own;
  tick(clock);
  return engine;
}

void Race::join_engine(uint32_t clock, uint32_t engine) {
  Vector mine = *clocks_[clock].told;
  Vector its = view(engine);
  for (size_t k = 0; k < mine.size(); k++) mine[k] = mine[k] > its[k] ? mine[k] : its[k];
  clocks_[clock].told = std::make_shared<const Vector>(std::move(mine));
  tick(engine);
}

void Race::fence_proxy(uint32_t clock) {
  clocks_[clock].fenced = clocks_[clock].own;
  tick(clock);
}

bool Race::proxy_fenced(const void* p, size_t n, uint32_t* writer) {
  Place* end = place(static_cast<const char*>(p) + n - 1) + 1;
  for (Place* at = place(p); at < end; at++) {
    uint32_t by = who(at->writer);
    if (at->writer && by < threads_ && when(at->writer) > clocks_[by].fenced) {
      *writer = by;
      return false;
    }
  }
  return true;
}

#else

Race::Race(Memory& memory) : memory_(memory) {}
Race::~Race() = default;
void Race::start_launch(uint32_t) {}
void Race::end_launch() {}
void Race::start_cta(const Cta&) {}
void Race::start_thread(const Thread&) {}
void Race::access(uint32_t, const void*, size_t, Kind, const void*) {}
void Race::barrier(Thread* const*, size_t, Thread* const*, size_t) {}
void Race::release(uint32_t, const void*) {}
void Race::acquire(uint32_t, const void*) {}
void Race::forget(const void*) {}
uint32_t Race::begin_engine(uint32_t) { return 0; }
void Race::join_engine(uint32_t, uint32_t) {}
void Race::fence_proxy(uint32_t) {}
bool Race::proxy_fenced(const void*, size_t, uint32_t*) { return true; }

#endif

}  // namespace emu
