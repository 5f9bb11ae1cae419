// Turns what the host's processor refuses into a fault of the launch.
#pragma once

namespace emu {

/// While it lives, a segmentation fault of a kernel's thread, or on x86-64 an integer division by zero, ends the launch
/// instead of the process.
class CrashGuard {
 public:
  CrashGuard();
  ~CrashGuard();
  CrashGuard(const CrashGuard&) = delete;
  CrashGuard& operator=(const CrashGuard&) = delete;
};

}  // namespace emu
