#include "crash.h"

#include <signal.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <mutex>

#include "machine.h"
#include "sanitizer.h"

namespace emu {

namespace {

// AddressSanitizer has its own signal handler, whose report says more.
constexpr bool installs_handler = !EMU_ADDRESS_SANITIZER;
constexpr size_t signal_stack_bytes = 64 << 10;

constexpr int signals[] = {SIGSEGV, SIGFPE};
struct sigaction before[2];
thread_local int crash_signal = 0;
thread_local const void* crash_address = nullptr;

void crashed() {
  // On a GPU the result is an unspecified value; in C++ the behaviour is undefined.
  if (crash_signal == SIGFPE) fail(Fault::crash, "integer division by zero, or with a result out of range");
  fail(Fault::crash, "segmentation fault at %p", crash_address);
}

void handler(int signal, siginfo_t* info, void* context) {
  if (!machine || !self) {
    // Not caused by a kernel: restores the previous handler and lets the instruction fault again.
    sigaction(signal, &before[signal == SIGFPE], nullptr);
    return;
  }
  crash_signal = signal;
  crash_address = info->si_addr;
  // Continues in `crashed` on the thread's own stack, as if the faulting instruction had called it.
#if defined(__x86_64__)
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  registers[REG_RSP] = ((registers[REG_RSP] - 256) & ~15ll) - 8;
  registers[REG_RIP] = reinterpret_cast<greg_t>(&crashed);
#else
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext;
  registers.sp = (registers.sp - 256) & ~15ull;
  registers.pc = reinterpret_cast<uint64_t>(&crashed);
#endif
}

std::mutex count_lock;
int guards = 0;

}  // namespace

CrashGuard::CrashGuard() {
  if (!installs_handler) return;
  thread_local void* stack = nullptr;
  stack_t current;
  if (sigaltstack(nullptr, &current) == 0 && (current.ss_flags & SS_DISABLE) && !stack) {
    stack = malloc(signal_stack_bytes);
    stack_t own{};
    own.ss_sp = stack;
    own.ss_size = signal_stack_bytes;
    sigaltstack(&own, nullptr);
  }
  std::lock_guard<std::mutex> hold(count_lock);
  if (guards++ == 0) {
    struct sigaction action{};
    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 2; i++) sigaction(signals[i], &action, &before[i]);
  }
}

CrashGuard::~CrashGuard() {
  if (!installs_handler) return;
  std::lock_guard<std::mutex> hold(count_lock);
  if (--guards != 0) return;
  for (int i = 0; i < 2; i++) sigaction(signals[i], &before[i], nullptr);
}

}  // namespace emu
