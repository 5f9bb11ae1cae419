// What the emulator keeps about shared memory beside its bytes: where asynchronous copies have not completed, and what the
// async proxy (copy engines, wgmma) sees.
//
// On hardware the async proxy may not see ordinary writes before a proxy fence. Ordinary writes are not traced in every
// build. So the async proxy has its own copy of shared memory here, its view, which only its own writes and proxy fences
// update. If the view differs from memory when the proxy reads, a fence is missing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "memory.h"

namespace emu {

struct Cta;

class ShadowMemory {
 public:
  explicit ShadowMemory(const Memory& memory);
  ~ShadowMemory();
  ShadowMemory(const ShadowMemory&) = delete;
  ShadowMemory& operator=(const ShadowMemory&) = delete;

  /// Resets all that is kept about the slot that the CTA takes over.
  void start_cta(const Cta& cta);

  /// Called when a copy to these bytes (whole words) is issued: they are NaN, and may not be accessed, until `complete_copy`.
  void start_copy(char* to, size_t bytes);
  /// Writes the copied bytes. Faults if the destination was written since `start_copy`. `async_proxy`: the copy is one of the
  /// async proxy, so the view gets the bytes as well.
  void complete_copy(char* to, const char* from, size_t bytes, bool async_proxy, const char* name);
  /// Faults if any of these bytes are the destination of a copy that has not completed.
  void check_no_copy_in_flight(const void* p, size_t bytes, const char* name) const;

  /// fence.proxy.async: the async proxy sees all that was written to the CTA's shared memory.
  void publish_to_proxy(const Cta& cta);
  /// Faults if the view differs from memory in these bytes.
  void check_visible_to_proxy(const void* p, size_t bytes, const char* name) const;

 private:
  static constexpr size_t word = 4;
  size_t offset(const void* p) const { return memory_.offset(p) - Memory::global_bytes; }

  const Memory& memory_;
  uint8_t* in_flight_;  // for every word, whether a copy to it has not completed
  char* view_;
  std::vector<size_t> used_;  // for every slot, how many bytes from its start the view and in_flight_ may have set
};

}  // namespace emu
