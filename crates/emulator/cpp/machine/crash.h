// Turns the host's own memory protection into a fault of the launch.
#pragma once

namespace emu {

/// While it lives, a segmentation fault of a kernel's thread ends the launch instead of the process.
class CrashGuard {
 public:
  CrashGuard();
  ~CrashGuard();
  CrashGuard(const CrashGuard&) = delete;
  CrashGuard& operator=(const CrashGuard&) = delete;
};

}  // namespace emu
