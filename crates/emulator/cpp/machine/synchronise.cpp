#include "synchronise.h"

#include "cluster.h"
#include "race.h"

namespace emu {

namespace {

void complete(Barrier& barrier) {
  std::vector<Thread*> all, waiting;
  all.swap(barrier.all);
  waiting.swap(barrier.waiting);
  barrier.arrived = 0;
  machine->race->barrier(all.data(), all.size(), waiting.data(), waiting.size());
  for (Thread* thread : waiting) {
    if (thread != self) machine->wake(thread);
  }
}

}  // namespace

void arrive(Barrier& barrier, uint32_t expected, bool wait, const char* name, uint64_t detail) {
  if (barrier.arrived && barrier.expected != expected) {
    fail(Fault::barrier, "%s: barrier 0x%llx expects %u threads here and %u elsewhere", name,
         (unsigned long long)detail, expected, barrier.expected);
  }
  barrier.expected = expected;
  barrier.arrived++;
  barrier.all.push_back(self);
  if (wait) barrier.waiting.push_back(self);
  if (barrier.arrived == expected) {
    complete(barrier);
  } else if (wait) {
    machine->block(name, detail);
  }
}

void sync_block() {
  Cta& cta = *self->cta;
  // Exited threads are not expected, so the count is set anew at each arrival.
  cta.barriers[0].expected = cta.live;
  arrive(cta.barriers[0], cta.live, true, "sync_block", 0);
}

bool sync_block_or(bool vote) {
  // Three slots hold the votes of successive rounds in turn. After the barrier of a round no thread can still read the votes
  // of the round before, so their slot is cleared; the next round but one uses it.
  Cta& cta = *self->cta;
  uint32_t round = self->vote_round++;
  cta.votes[round % 3] |= vote;
  sync_block();
  bool result = cta.votes[round % 3];
  cta.votes[(round + 2) % 3] = false;
  return result;
}

void named_barrier(uint32_t id, uint32_t threads, bool wait) {
  const char* name = wait ? "sync_named" : "arrive_named";
  if (id > 15) fail(Fault::barrier, "%s: barrier %u does not exist; a CTA has barriers 0 to 15", name, id);
  if (threads == 0 || threads % 32) fail(Fault::barrier, "%s: %u threads are not whole warps", name, threads);
  if (threads > self->cta->threads.size()) {
    fail(Fault::barrier, "%s: %u threads in a CTA of %zu", name, threads, self->cta->threads.size());
  }
  arrive(self->cta->barriers[id], threads, wait, name, id);
}

void on_thread_exit(Cta& cta) {
  Barrier& block = cta.barriers[0];
  if (block.arrived && block.arrived == cta.live) complete(block);
  on_cluster_thread_exit(*cta.cluster);
}

void warp_instruction(uint32_t members, const char* name, WarpFunction function, void* argument) {
  Warp& warp = *self->warp;
  uint32_t me = 1u << self->lane;
  if (!(members & me)) fail(Fault::collective, "%s: the calling lane is not in the mask %08x", name, members);
  if (members & ~warp.live) {
    fail(Fault::collective, "%s: the mask %08x names lanes that have exited or do not exist (live lanes: %08x)", name, members,
         warp.live);
  }
  WarpInstruction* open = nullptr;
  for (WarpInstruction& other : warp.open) {
    if (other.members == members) {
      open = &other;
    } else if (other.members & me && other.arrived & members) {
      // Each of the two instructions waits for a lane that waits at the other, so neither can complete.
      fail(Fault::collective, "%s with members %08x meets %s with members %08x: the warp has diverged", name, members,
           other.name, other.members);
    }
  }
  if (!open) {
    warp.open.push_back({members, 0, name, {}, {}});
    open = &warp.open.back();
  }
  if (open->name != name) {
    fail(Fault::collective, "lanes of one warp are at different instructions, %s and %s", name, open->name);
  }
  open->arrived |= me;
  open->argument[self->lane] = argument;
  open->thread[self->lane] = self;
  if (open->arrived != members) {
    machine->block(name, members);
    return;
  }
  WarpInstruction all = *open;
  warp.open.erase(warp.open.begin() + (open - warp.open.data()));
  function(all);
  for (uint32_t lane = 0; lane < 32; lane++) {
    if (all.thread[lane] && all.thread[lane] != self) machine->wake(all.thread[lane]);
  }
}

}  // namespace emu
