// A fiber: a stack, and the point of execution at which it is suspended.
#pragma once

#include <cstddef>

namespace emu {

class Fiber {
 public:
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// The next switch to the fiber starts `entry` on an empty stack, whatever the fiber did before.
  void reset(void (*entry)());

  /// Suspends `from` and continues `to`. With `final`, `from` will never be continued.
  static void switch_to(Fiber& from, Fiber& to, bool final = false);

  /// Must be the first call in `entry`.
  static void started();

 private:
  void* stack_pointer_ = nullptr;
  char* stack_ = nullptr;
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
};

}  // namespace emu
