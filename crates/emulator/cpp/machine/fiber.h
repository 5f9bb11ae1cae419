// A stack and the point at which its owner was left.
#pragma once

#include <cstddef>

namespace emu {

class Fiber {
 public:
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Makes the fiber start in `entry` at the next switch to it, whatever it was doing before.
  void reset(void (*entry)());

  /// Leaves `from` where it is and continues `to`. `final` promises that `from` is never continued.
  static void switch_to(Fiber& from, Fiber& to, bool final = false);

  /// To be called first thing in `entry`.
  static void started();

 private:
  void* stack_pointer_ = nullptr;
  char* stack_ = nullptr;
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
};

}  // namespace emu
