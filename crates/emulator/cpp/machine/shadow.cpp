#include "shadow.h"

#include <algorithm>
#include <cstring>

#include "fault.h"
#include "machine.h"
#include "race.h"

namespace emu {

namespace {
constexpr size_t shared_bytes = Memory::slots * Memory::slot_bytes;
}

ShadowMemory::ShadowMemory(const Memory& memory)
    : memory_(memory),
      in_flight_(static_cast<uint8_t*>(reserve(shared_bytes / word))),
      view_(static_cast<char*>(reserve(shared_bytes))),
      used_(Memory::slots, Memory::slot_bytes) {}

ShadowMemory::~ShadowMemory() {
  unreserve(in_flight_, shared_bytes / word);
  unreserve(view_, shared_bytes);
}

void ShadowMemory::start_cta(const Cta& cta) {
  size_t start = offset(cta.shared);
  memset(in_flight_ + start / word, 0, used_[cta.slot] / word);
  memset(view_ + start, 0xff, used_[cta.slot]);
  used_[cta.slot] = 0;
}

void ShadowMemory::start_copy(char* to, size_t bytes) {
  memset(to, 0xff, bytes);
  memset(in_flight_ + offset(to) / word, 1, bytes / word);
  size_t& used = used_[offset(to) / Memory::slot_bytes];
  used = std::max(used, offset(to) % Memory::slot_bytes + bytes);
}

void ShadowMemory::complete_copy(char* to, const char* from, size_t bytes, bool async_proxy, const char* name) {
  for (size_t i = 0; i < bytes; i++) {
    if (static_cast<unsigned char>(to[i]) != 0xff) {
      fail(Fault::in_flight, "%s: its destination in shared memory, 0x%zx, was written before the copy completed", name,
           offset(to + i) % Memory::slot_bytes);
    }
  }
  memcpy(to, from, bytes);
  memset(in_flight_ + offset(to) / word, 0, bytes / word);
  if (async_proxy) memcpy(view_ + offset(to), from, bytes);
}

void ShadowMemory::check_no_copy_in_flight(const void* p, size_t bytes, const char* name) const {
  for (size_t at = offset(p) / word; at <= (offset(p) + bytes - 1) / word; at++) {
    if (in_flight_[at]) {
      fail(Fault::in_flight, "%s of %zu bytes at 0x%zx of shared memory, the destination of a copy that has not completed",
           name, bytes, offset(p) % Memory::slot_bytes);
    }
  }
}

void ShadowMemory::publish_to_proxy(const Cta& cta) {
  for (const SharedArray& piece : cta.shared_arrays) {
    const char* from = cta.shared + piece.offset;
    memcpy(view_ + offset(from), from, piece.bytes);
    used_[cta.slot] = std::max<size_t>(used_[cta.slot], piece.offset + (piece.bytes + word - 1) / word * word);
  }
}

void ShadowMemory::check_visible_to_proxy(const void* p, size_t bytes, const char* name) const {
  uint32_t writer;
  if (memory_.is_shared(p) && memcmp(p, view_ + offset(p), bytes) != 0) {
    fail(Fault::proxy, "%s of %zu bytes at 0x%zx of shared memory without fence_proxy_async_shared since they were written",
         name, bytes, offset(p) % Memory::slot_bytes);
  }
  if (!machine->race->proxy_fenced(self->clock, p, bytes, &writer)) {
    fail(Fault::proxy, "%s of %zu bytes of %s memory that thread %u of a CTA wrote, with no proxy fence between", name,
         bytes, memory_.is_shared(p) ? "shared" : "global", writer);
  }
}

}  // namespace emu
