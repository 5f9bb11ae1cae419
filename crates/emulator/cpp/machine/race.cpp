#include "race.h"

#include <sys/mman.h>

#include <cstdio>

#include "fault.h"
#include "machine.h"
#include "site.h"

namespace emu {

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
  for (Clock& clock : clocks_) clock.told = nothing, clock.own = clock.born = 1;
  objects_.clear();
  // Each launch is ordered after the launches before it.
  madvise(places_, Memory::arena_bytes / granule * sizeof(Place), MADV_DONTNEED);
}

void Race::end_launch() {
  clocks_.clear();
  objects_.clear();
  merged_from_ = merged_with_ = merged_ = nullptr;
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
}

void Race::tick(uint32_t clock) {
  if (++clocks_[clock].own >> clock_bits) fail(Fault::resources, "the race detector's clock of a thread is full");
}

bool Race::knows(const Actor& actor, uint32_t epoch) {
  uint32_t by = who(epoch), at = when(epoch);
  if (by == who(actor.epoch) && at >= actor.born) return true;
  if (by == actor.parent && at >= actor.parent_born && at <= actor.parent_own) return true;
  return (*actor.told)[by] >= at;
}

Race::Actor Race::actor(uint32_t clock) const {
  const Clock& c = clocks_[clock];
  return {clock << clock_bits | c.own, c.born, no_clock, 0, 0, c.told.get()};
}

Race::Actor Race::actor(const Engine& engine) {
  return {engine.id << clock_bits | engine.when, engine.when,      engine.parent, engine.parent_born,
          engine.parent_own,                     engine.told.get()};
}

Race::Vector Race::view(uint32_t clock) const {
  Vector vector = *clocks_[clock].told;
  vector[clock] = clocks_[clock].own;
  return vector;
}

void Race::report(const char* what, const Actor& actor, uint32_t epoch, const void* p, const void* site,
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
       name(who(actor.epoch), mine, sizeof mine), site_number(site), name(who(epoch), theirs, sizeof theirs), other_site);
}

void Race::access(uint32_t clock, const void* p, size_t n, Kind kind, const void* site) {
  if (clocks_.empty()) return;
  access(actor(clock), p, n, kind, site);
}

void Race::access(const Engine& engine, const void* p, size_t n, Kind kind, const void* site) {
  if (clocks_.empty()) return;
  access(actor(engine), p, n, kind, site);
}

void Race::access(const Actor& actor, const void* p, size_t n, Kind kind, const void* site) {
  if (memory_.offset(p) >= Memory::arena_bytes) return;
  const uint32_t me = actor.epoch;
  const bool atomic = kind == Kind::atomic;
  Place* end = place(static_cast<const char*>(p) + n - 1) + 1;
  for (Place* at = place(p); at < end; at++) {
    const void* address = static_cast<const char*>(p) + (at - place(p)) * granule;
    if (kind == Kind::read && at->writer == 0 && memory_.is_shared(p)) {
      fail(Fault::uninitialised, "shared memory at 0x%zx is read before anything wrote it, at @0x%x",
           (memory_.offset(address) - Memory::global_bytes) % Memory::slot_bytes, site_number(site));
    }
    if (at->writer != me && at->writer && !(atomic && at->writer_atomic) && !knows(actor, at->writer)) {
      report(kind == Kind::read ? "read after an unordered write" : "write after an unordered write", actor, at->writer,
             address, site, at->writer_site);
    }
    if (kind == Kind::read) {
      // Readers that are ordered before this one need not be kept.
      int slot = -1;
      for (int i = 0; i < 3 && slot < 0; i++) {
        if (at->reader[i] == 0 || knows(actor, at->reader[i])) slot = i;
      }
      if (slot < 0) slot = static_cast<int>(me % 3);
      at->reader[slot] = me;
      at->reader_site[slot] = site_number(site);
      continue;
    }
    for (int i = 0; i < 3; i++) {
      if (at->reader[i] && !knows(actor, at->reader[i])) {
        report("write after an unordered read", actor, at->reader[i], address, site, at->reader_site[i]);
      }
      at->reader[i] = 0;
    }
    at->writer = me;
    at->writer_atomic = atomic;
    at->writer_site = site_number(site);
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

void Race::release(Vector mine, const void* object) {
  auto& known = objects_[object];
  if (known) {
    for (size_t k = 0; k < mine.size(); k++) mine[k] = mine[k] > (*known)[k] ? mine[k] : (*known)[k];
  }
  known = std::make_shared<const Vector>(std::move(mine));
}

void Race::release(uint32_t clock, const void* object) {
  release(view(clock), object);
  tick(clock);
}

void Race::release(const Engine& engine, const void* object) {
  Vector its = *engine.told;
  if (engine.parent != no_clock && its[engine.parent] < engine.parent_own) its[engine.parent] = engine.parent_own;
  its[engine.id] = engine.when;
  release(std::move(its), object);
}

void Race::acquire(uint32_t clock, const void* object) {
  auto found = objects_.find(object);
  if (found == objects_.end()) return;
  auto& told = clocks_[clock].told;
  if (told != merged_from_ || found->second != merged_with_) {
    merged_from_ = told;
    merged_with_ = found->second;
    Vector mine = *told;
    for (size_t k = 0; k < mine.size(); k++) mine[k] = mine[k] > (*merged_with_)[k] ? mine[k] : (*merged_with_)[k];
    merged_ = std::make_shared<const Vector>(std::move(mine));
  }
  told = merged_;
}

void Race::forget(const void* object) { objects_.erase(object); }

void Race::inherit(const void* to, const void* from) {
  auto found = objects_.find(from);
  if (found == objects_.end()) {
    objects_.erase(to);
  } else {
    auto vector = found->second;
    objects_[to] = vector;
  }
}

Race::Engine Race::begin_engine(uint32_t clock) {
  const Clock& parent = clocks_[clock];
  Engine engine;
  engine.id = threads_ + next_engine_++ % engines;
  tick(engine.id);
  engine.when = clocks_[engine.id].own;
  engine.parent = clock;
  engine.parent_born = parent.born;
  engine.parent_own = parent.own;
  engine.told = parent.told;
  // What the parent does from now on is not ordered before the operation.
  tick(clock);
  return engine;
}

bool Race::begun_now(const Engine& engine, uint32_t clock) const {
  const Clock& parent = clocks_[clock];
  return engine.parent == clock && engine.parent_own + 1 == parent.own && engine.told == parent.told;
}

Race::Engine Race::begin_engine(Thread* const* threads, size_t n) {
  Engine engine;
  engine.id = threads_ + next_engine_++ % engines;
  tick(engine.id);
  engine.when = clocks_[engine.id].own;
  // Threads that share a vector are merged once.
  std::unordered_map<const Vector*, std::vector<uint32_t>> sharing;
  for (size_t i = 0; i < n; i++) sharing[clocks_[threads[i]->clock].told.get()].push_back(threads[i]->clock);
  Vector least = *sharing.begin()->first;
  for (const auto& [told, clocks] : sharing) {
    for (size_t k = 0; k < least.size(); k++) least[k] = least[k] < (*told)[k] ? least[k] : (*told)[k];
  }
  // A thread's own accesses are ordered before it, whatever its vector holds.
  for (const auto& [told, clocks] : sharing) {
    if (clocks.size() > 1) continue;
    uint32_t known = clocks_[clocks[0]].own;
    for (const auto& [others, same] : sharing) {
      if (others != told && (*others)[clocks[0]] < known) known = (*others)[clocks[0]];
    }
    least[clocks[0]] = known;
  }
  engine.told = std::make_shared<const Vector>(std::move(least));
  return engine;
}

void Race::join(Thread* const* threads, size_t n, const Engine& engine) {
  std::shared_ptr<const Vector> before, after;
  for (size_t i = 0; i < n; i++) {
    auto& told = clocks_[threads[i]->clock].told;
    if ((*told)[engine.id] >= engine.when) continue;
    if (told != before) {
      Vector mine = *told;
      mine[engine.id] = engine.when;
      before = told;
      after = std::make_shared<const Vector>(std::move(mine));
    }
    told = after;
  }
}

void Race::fence_proxy(uint32_t clock, bool shared) {
  clocks_[clock].fenced[shared] = clocks_[clock].own;
  clocks_[clock].told_at_fence[shared] = clocks_[clock].told;
  tick(clock);
}

bool Race::proxy_fenced(uint32_t clock, const void* p, size_t n, uint32_t* writer) const {
  const bool shared = memory_.is_shared(p);
  const uint32_t cta_threads = machine->shape.threads;
  const Vector* at_fence = clocks_[clock].told_at_fence[shared].get();
  const Place* end = place(static_cast<const char*>(p) + n - 1) + 1;
  for (const Place* at = place(p); at < end; at++) {
    uint32_t by = who(at->writer), time = when(at->writer);
    if (at->writer == 0 || by >= threads_) continue;
    const bool own = by / cta_threads == clock / cta_threads;
    // A multicast writes to other CTAs' shared memory: there too the writer's own fence is enough.
    if ((own || shared) && time <= clocks_[by].fenced[shared]) continue;
    if (!(own && shared) && at_fence && (*at_fence)[by] >= time) continue;
    *writer = by % cta_threads;
    return false;
  }
  return true;
}

bool Race::knows_started(uint32_t clock, const Cta& cta) const {
  const Vector& told = *clocks_[clock].told;
  for (const Thread* thread : cta.threads) {
    if (told[thread->clock] >= clocks_[thread->clock].born) return true;
  }
  return false;
}

bool Race::may_exit(const Cta& cta) const {
  Vector all(clocks_.size(), 0u);
  const Vector* last = nullptr;
  for (const Thread* thread : cta.threads) {
    const Clock& clock = clocks_[thread->clock];
    if (clock.told.get() != last) {
      last = clock.told.get();
      for (size_t k = 0; k < all.size(); k++) all[k] = all[k] > (*last)[k] ? all[k] : (*last)[k];
    }
  }
  for (const Thread* thread : cta.threads) all[thread->clock] = clocks_[thread->clock].own;
  auto known = [&](uint32_t epoch) { return epoch == 0 || all[who(epoch)] >= when(epoch); };
  for (const Piece& piece : cta.pieces) {
    const Place* end = place(cta.shared + piece.offset + piece.bytes - 1) + 1;
    for (const Place* at = place(cta.shared + piece.offset); at < end; at++) {
      if (!known(at->writer) || !known(at->reader[0]) || !known(at->reader[1]) || !known(at->reader[2])) return false;
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
Race::Engine Race::begin_engine(uint32_t) { return {}; }
Race::Engine Race::begin_engine(Thread* const*, size_t) { return {}; }
bool Race::begun_now(const Engine&, uint32_t) const { return true; }
void Race::access(const Engine&, const void*, size_t, Kind, const void*) {}
void Race::release(const Engine&, const void*) {}
void Race::join(Thread* const*, size_t, const Engine&) {}
void Race::inherit(const void*, const void*) {}
void Race::fence_proxy(uint32_t, bool) {}
bool Race::proxy_fenced(uint32_t, const void*, size_t, uint32_t*) const { return true; }
bool Race::knows_started(uint32_t, const Cta&) const { return true; }
bool Race::may_exit(const Cta&) const { return true; }

#endif

}  // namespace emu
