// What is known of shared memory beside its bytes: where asynchronous copies have yet to land, and what the async proxy
// (copy engines, wgmma) would see there.
//
// The hardware keeps ordinary writes from the async proxy until a proxy fence. Ordinary writes cannot be followed in every
// build, so the async proxy has a view of its own: brought up to date by its own writes and by fences. Where view and
// memory differ when the proxy reads, a fence is missing.
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

  /// Forgets what is known of the CTA's slot.
  void start_cta(const Cta& cta);

  /// A copy to these bytes (whole words) has begun: they are NaN, and nobody's, until `land`.
  void take_off(char* to, size_t bytes);
  /// The copy brings its bytes. `async_proxy`: it is the proxy that brings them. Faults if the destination was written.
  void land(char* to, const char* from, size_t bytes, bool async_proxy, const char* name);
  /// Faults if any of these bytes are a copy's that has not landed.
  void expect_landed(const void* p, size_t bytes, const char* name) const;

  /// fence.proxy.async: the proxy sees all that was written to the CTA's shared memory.
  void publish(const Cta& cta);
  /// Faults if the proxy would see something else than memory holds.
  void expect_published(const void* p, size_t bytes, const char* name) const;

 private:
  static constexpr size_t word = 4;
  size_t offset(const void* p) const { return memory_.offset(p) - Memory::global_bytes; }

  const Memory& memory_;
  uint8_t* in_flight_;  // of every word
  char* view_;
  std::vector<size_t> used_;  // of every slot, how many bytes of the view and of the marks may be set
};

}  // namespace emu
