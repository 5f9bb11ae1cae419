// Asynchronous operations in flight. An operation is queued when it is issued, and carried out at the last moment that a
// wait allows, at once, or at a random moment, as the launch is configured. Its source is read when the operation is issued.
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
  /// Faults if a thread, or a CTA's last thread, exits while operations that it issued still need it.
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

/// Runs all other threads before a wait returns, so that what it waits for completes as late as possible.
void settle(const char* why);

}  // namespace emu
