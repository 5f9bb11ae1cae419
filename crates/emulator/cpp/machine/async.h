// Asynchronous operations in flight. An operation is queued when it is issued. It is carried out when a thread waits for it,
// at once, or at a random moment between, as Config::completion says. Its source is read when it is issued.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>

namespace emu {

struct Cta;
struct Thread;

class AsyncState {
 public:
  using Operation = std::function<void()>;

  void start_launch();
  void end_launch();
  void start_thread(Thread& thread);
  /// Called when a thread, or a CTA's last thread, exits. Faults if operations that it issued still need it.
  void finish_thread(Thread& thread);
  void finish_cta(Cta& cta);

  /// Queues an operation, or carries it out at once if completion is eager. Returns its number, which is never zero.
  uint64_t post(Operation operation);
  /// Carries out the operation now if it is still queued.
  void finish(uint64_t number);
  /// Carries out one queued operation: the oldest or, with random completion, any. Returns false if there was none.
  bool complete_one();
  bool empty() const { return queue_.empty(); }

 private:
  struct Queued {
    uint64_t number;
    Operation operation;
  };
  std::deque<Queued> queue_;
  uint64_t last_ = 0;
};

/// Called at the start of a wait: runs all other threads first, so that the operations waited for complete as late as possible.
void run_others_first(const char* why);

}  // namespace emu
