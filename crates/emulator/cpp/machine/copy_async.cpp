#include "copy_async.h"

#include <cstring>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "async.h"
#include "counters.h"
#include "machine.h"
#include "race.h"
#include "runtime.h"
#include "shadow.h"

#define SITE __builtin_return_address(0)

namespace emu {

namespace {

struct Copy {
  char* to;
  const char* from;
  const void* site;
  uint8_t width, bytes;
  bool complete;
  char source[16];  // the source bytes at the time of issue, then zeros
};

struct Group {
  Cta* cta = nullptr;
  std::vector<Copy> copies;
  std::vector<RaceDetector::AsyncOperation> operations;
  uint64_t operation = 0;
};

void complete(Copy& copy, Cta& cta) {
  if (copy.complete) return;
  if (memcmp(copy.from, copy.source, copy.bytes) != 0) {
    fail(Fault::in_flight, "copy_async: its source in global memory changed before it completed");
  }
  machine->shadow->complete_copy(copy.to, copy.source, copy.width, false, "copy_async");
  copy.complete = true;
  cta.copies_in_flight--;
}

void complete(Group& group) {
  for (Copy& copy : group.copies) complete(copy, *group.cta);
}

}  // namespace

struct ThreadCopies {
  std::shared_ptr<Group> open = std::make_shared<Group>();
  std::deque<std::shared_ptr<Group>> committed;
};

namespace {

ThreadCopies& copies() {
  if (!self->copies) self->copies = std::make_shared<ThreadCopies>();
  return *self->copies;
}

}  // namespace

void copy_async(uint32_t to, const void* from, uint32_t width, uint32_t bytes) {
  const void* site = SITE;
  Machine& m = *machine;
  if (bytes > width) fail(Fault::out_of_bounds, "copy_async of %u bytes to a destination of %u", bytes, width);
  if (reinterpret_cast<uintptr_t>(from) % width) fail(Fault::misaligned, "copy_async of %u bytes from %p", width, from);
  if (bytes != 0 && (!m.memory.is_global(from) || !m.memory.accessible(from, bytes))) {
    fail(Fault::out_of_bounds, "copy_async of %u bytes from %p, outside every allocation of global memory", bytes, from);
  }
  char* p = static_cast<char*>(own_shared_pointer(to, width, width, "copy_async"));
  m.shadow->check_no_copy_in_flight(p, width, "copy_async");

  if (bytes != 0 && !self->first_access) self->first_access = "copy_async";
  Group& group = *copies().open;
  group.cta = self->cta;
  if (group.operations.empty() || !m.race->is_current(group.operations.back(), self->clock)) {
    group.operations.push_back(m.race->begin_operation(self->clock));
  }
  const RaceDetector::AsyncOperation& engine = group.operations.back();
  if (bytes != 0) {
    m.race->access(engine, from, bytes, RaceDetector::Kind::read, site);
    m.counters->engine(from, bytes, false);
    m.read.insert(m.memory, from, bytes);
  }
  m.race->access(engine, p, width, RaceDetector::Kind::write, site);
  m.counters->shared(p, width, true, site);

  Copy copy{p, static_cast<const char*>(from), site, static_cast<uint8_t>(width), static_cast<uint8_t>(bytes), false, {}};
  memcpy(copy.source, from, bytes);
  m.shadow->start_copy(p, width);
  self->cta->copies_in_flight++;
  group.copies.push_back(copy);
  const bool at_once = m.config.completion == Completion::random && m.random() % 4 == 0;
  if (at_once || m.config.completion == Completion::eager) complete(group.copies.back(), *group.cta);
}

void copy_async_commit() {
  ThreadCopies& mine = copies();
  auto group = std::move(mine.open);
  mine.open = std::make_shared<Group>();
  if (!group->copies.empty()) group->operation = machine->async->post([group] { complete(*group); });
  mine.committed.push_back(std::move(group));
}

void copy_async_wait(uint32_t groups) {
  ThreadCopies& mine = copies();
  bool settled = false;
  while (mine.committed.size() > groups) {
    std::shared_ptr<Group> group = mine.committed.front();
    if (!group->copies.empty() && !settled) {
      run_others_first("copy_async_wait");
      settled = true;
    }
    machine->async->finish(group->operation);
    mine.committed.pop_front();
    for (const RaceDetector::AsyncOperation& engine : group->operations) machine->race->join(&self, 1, engine);
    // From here on the copies count as the thread's own writes: a barrier makes them visible to other threads, a proxy fence
    // to the async proxy.
    for (const Copy& copy : group->copies) {
      machine->race->access(self->clock, copy.to, copy.width, RaceDetector::Kind::write, copy.site);
    }
  }
}

void check_copies_at_exit(const Thread& thread) {
  if (!thread.copies) return;
  bool pending = !thread.copies->open->copies.empty();
  for (const auto& group : thread.copies->committed) pending |= !group->copies.empty();
  if (pending) fail(Fault::in_flight, "a thread exits without having waited for its copy_async groups");
}

}  // namespace emu
