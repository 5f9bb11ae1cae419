// The faults that the emulator finds. Each ends the launch; the kernel's threads are dropped where they are.
#pragma once

namespace emu {

enum class Fault : int {
  none = 0,
  out_of_bounds,     // a global or shared address outside every allocation
  misaligned,        // an address that is no multiple of the access width
  uninitialised,     // shared memory read before anything wrote it
  race,              // two unordered accesses to one place in memory, one of them a write
  in_flight,         // an asynchronous copy's destination accessed before its wait, or its source changed
  proxy,             // generic-proxy writes read by the async proxy without fence.proxy.async
  barrier,           // thread counts that disagree, arrivals over the count, an mbarrier never initialised
  collective,        // a warp instruction with absent, exited or diverged lanes
  descriptor,        // a tensor map or matrix descriptor that the hardware would reject
  operand,           // a matrix operand that was not rounded to the instruction's type
  deadlock,          // every thread waits
  livelock,          // every thread left polls a value that nothing can change any more
  resources,         // more threads, shared memory or parameters than the launch may have
  crash,             // a signal: the host's own memory protection, an integer division by zero
};

const char* fault_name(Fault fault);

/// Ends the launch: records the message and where every thread is, and continues in the launching thread.
[[noreturn]] void fail(Fault fault, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace emu
