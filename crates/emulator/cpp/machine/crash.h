// Turns signals of the host's processor (segmentation fault, division by zero) into faults of the launch.
#pragma once

namespace emu {

/// While a guard exists, a segmentation fault of a kernel's thread, or on x86-64 an integer division by zero, ends the
/// launch instead of the process.
class CrashGuard {
 public:
  CrashGuard();
  ~CrashGuard();
  CrashGuard(const CrashGuard&) = delete;
  CrashGuard& operator=(const CrashGuard&) = delete;
};

}  // namespace emu
