// What is kept of shared memory beside its bytes: where asynchronous copies have not completed, and what the async proxy
// (copy engines, wgmma) would see.
//
// On hardware the async proxy may not see ordinary writes before a proxy fence. Ordinary writes cannot be traced in every
// build, so the async proxy has a view of its own here, which its own writes and fences update. Where view and memory differ
// when the proxy reads, a fence is missing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "memory.h"

namespace emu {

struct Cta;

class Shadow {
 public:
  explicit Shadow(const Memory& memory);
  ~Shadow();
  Shadow(const Shadow&) = delete;
  Shadow& operator=(const Shadow&) = delete;

  /// Resets what is kept of the CTA's slot.
  void start_cta(const Cta& cta);

  /// A copy to these bytes (whole words) was issued: they are NaN, and may not be accessed, until `land`.
  void take_off(char* to, size_t bytes);
  /// Completes the copy. `async_proxy`: it is a copy of the async proxy. Faults if the destination was written meanwhile.
  void land(char* to, const char* from, size_t bytes, bool async_proxy, const char* name);
  /// Faults if any of these bytes belong to a copy that has not completed.
  void expect_landed(const void* p, size_t bytes, const char* name) const;

  /// fence.proxy.async: the proxy sees everything that was written to the CTA's shared memory.
  void publish(const Cta& cta);
  /// Faults if the proxy would see something else than memory holds.
  void expect_published(const void* p, size_t bytes, const char* name) const;

 private:
  static constexpr size_t word = 4;
  size_t offset(const void* p) const { return memory_.offset(p) - Memory::global_bytes; }

  const Memory& memory_;
  uint8_t* in_flight_;  // for every word
  char* view_;
  std::vector<size_t> used_;  // for every slot, how many bytes of the view and of the marks may be set
};

}  // namespace emu
