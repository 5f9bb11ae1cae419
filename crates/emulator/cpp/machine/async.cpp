#include "async.h"

#include <algorithm>
#include <utility>

#include "cluster.h"
#include "copy_async.h"
#include "fault.h"
#include "machine.h"
#include "race.h"
#include "tma.h"
#include "wgmma.h"

namespace emu {

void AsyncState::start_launch() { queue_.clear(); }
void AsyncState::end_launch() { queue_.clear(); }

void AsyncState::start_thread(Thread& thread) {
  thread.copies = nullptr;
  thread.stores = nullptr;
  thread.cluster_arrived = false;
}

void AsyncState::finish_thread(Thread& thread) {
  check_copies_at_exit(thread);
  check_stores_at_exit(thread);
  check_wgmma_at_exit(thread);
  check_cluster_at_exit(thread);
}

void AsyncState::finish_cta(Cta& cta) {
  if (cta.copies_in_flight != 0) {
    fail(Fault::in_flight, "the last thread of CTA %u exits while %u copies use its shared memory", cta.linear,
         cta.copies_in_flight);
  }
  if (cta.cluster->ctas.size() == 1) return;
  if (!machine->race->may_exit(cta)) {
    fail(Fault::out_of_bounds, "CTA %u exits, and another CTA's access to its shared memory is not ordered before the exit",
         cta.linear);
  }
  machine->memory.close(cta.shared, Memory::slot_bytes);
}

uint64_t AsyncState::post(Operation operation) {
  last_++;
  if (machine->config.completion == Completion::eager) {
    operation();
  } else {
    queue_.push_back({last_, std::move(operation)});
  }
  return last_;
}

void AsyncState::finish(uint64_t number) {
  auto found = std::lower_bound(queue_.begin(), queue_.end(), number,
                                [](const Queued& queued, uint64_t wanted) { return queued.number < wanted; });
  if (found == queue_.end() || found->number != number) return;
  Operation operation = std::move(found->operation);
  queue_.erase(found);
  machine->events++;
  operation();
}

bool AsyncState::complete_one() {
  if (queue_.empty()) return false;
  size_t at = machine->config.completion == Completion::random ? machine->random() % queue_.size() : 0;
  finish(queue_[at].number);
  return true;
}

void run_others_first(const char* why) {
  Machine& m = *machine;
  if (m.config.completion == Completion::eager) return;
  if (m.config.completion == Completion::random && m.random() % 2) return;
  Thread* me = self;
  m.async->post([me] { machine->wake(me); });
  m.block(why);
}

}  // namespace emu
