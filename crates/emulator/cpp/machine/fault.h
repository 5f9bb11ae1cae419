// The faults that the emulator finds. Each ends the launch at once; the kernel's threads run no further.
#pragma once

namespace emu {

enum class Fault : int {
  none = 0,
  out_of_bounds,     // an access to an address outside every allocation
  misaligned,        // an address that is no multiple of the access width
  uninitialised,     // shared memory read before anything wrote it
  race,              // two unordered accesses to the same bytes, one of them a write
  in_flight,         // an asynchronous copy's destination accessed, or its source changed, before the copy completed
  proxy,             // ordinary writes read by the async proxy without a fence.proxy.async between
  barrier,           // a barrier with contradicting thread counts, too many arrivals, or no initialisation
  collective,        // a warp instruction that not all its lanes reach: some exited, diverged or are not in the mask
  descriptor,        // a tensor map or matrix descriptor that the hardware would reject
  operand,           // a matrix operand that was not rounded to the instruction's input type
  deadlock,          // every thread waits for another
  livelock,          // every remaining thread polls a value that no thread can change any more
  resources,         // more threads, shared memory or parameters than the launch may have
  crash,             // a signal of the host: a segmentation fault, an integer division by zero
};

const char* fault_name(Fault fault);

/// Ends the launch: records the message and what every thread was doing, and returns to the launching thread.
[[noreturn]] void fail(Fault fault, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace emu
