// Asynchronous operations in flight: posted now, carried out at the latest moment that their waits allow (or at once, or
// at random, as the launch is configured).
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
  /// Refuses to let a thread, or a CTA's last thread, leave while what it began still needs it.
  void finish_thread(Thread& thread);
  void finish_cta(Cta& cta);

  /// Queues an operation, or carries it out at once where completion is eager. Its number is never zero.
  uint64_t post(Operation operation);
  /// Carries out the operation now if it is still queued.
  void finish(uint64_t number);
  /// Carries out one queued operation: the oldest, or any. False if there was none.
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

/// Lets everything else run before a wait returns, so that what it waits for completes as late as it may.
void settle(const char* why);

}  // namespace emu
