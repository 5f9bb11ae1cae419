#include "async.h"

#include <algorithm>
#include <utility>

#include "machine.h"

namespace emu {

void AsyncState::start_launch() { queue_.clear(); }
void AsyncState::end_launch() { queue_.clear(); }
void AsyncState::start_thread(Thread&) {}
void AsyncState::finish_thread(Thread&) {}

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
  auto found = std::find_if(queue_.begin(), queue_.end(), [&](const Queued& q) { return q.number == number; });
  if (found == queue_.end()) return;
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

void settle(const char* why) {
  Machine& m = *machine;
  if (m.config.completion == Completion::eager) return;
  if (m.config.completion == Completion::random && m.random() % 2) return;
  Thread* me = self;
  m.async->post([me] { machine->wake(me); });
  m.block(why);
}

}  // namespace emu
