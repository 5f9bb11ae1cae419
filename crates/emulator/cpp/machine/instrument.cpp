// The race build's runtime: the functions that -fsanitize=thread calls before each access of a kernel. Accesses outside the
// arena, mostly to a thread's own stack, are not checked.
#ifdef EMU_RACE

#include <cstring>

#include "counters.h"
#include "machine.h"
#include "race.h"
#include "shadow.h"
#include "site.h"

namespace {

using emu::machine;
using emu::self;

inline void seen(const void* p, size_t n, bool write, const void* site) {
  if (!self || machine->memory.offset(p) >= emu::Memory::arena_bytes) return;
  if (!machine->memory.accessible(p, n)) {
    emu::fail(emu::Fault::out_of_bounds, "%s of %zu bytes outside every allocation, at @0x%x", write ? "write" : "read",
              n, emu::site_number(site));
  }
  if (machine->memory.is_shared(p)) {
    machine->shadow->expect_landed(p, n, write ? "a write" : "a read");
  } else if (!self->touched) {
    self->touched = write ? "a write" : "a read";
  }
  machine->race->access(self->clock, p, n, write ? emu::Race::Kind::write : emu::Race::Kind::read, site);
  if (machine->memory.is_shared(p)) machine->counters->shared(p, static_cast<uint32_t>(n), write, site);
}

}  // namespace

#define SITE __builtin_return_address(0)
#define CALL_OUTS(N)                                                           \
  void __tsan_read##N(void* p) { seen(p, N, false, SITE); }                    \
  void __tsan_write##N(void* p) { seen(p, N, true, SITE); }                    \
  void __tsan_unaligned_read##N(void* p) { seen(p, N, false, SITE); }          \
  void __tsan_unaligned_write##N(void* p) { seen(p, N, true, SITE); }

extern "C" {
CALL_OUTS(1)
CALL_OUTS(2)
CALL_OUTS(4)
CALL_OUTS(8)
CALL_OUTS(16)
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* p, size_t n) { seen(p, n, false, SITE); }
void __tsan_write_range(void* p, size_t n) { seen(p, n, true, SITE); }
void* __tsan_memcpy(void* to, const void* from, size_t n) {
  seen(from, n, false, SITE);
  seen(to, n, true, SITE);
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  seen(from, n, false, SITE);
  seen(to, n, true, SITE);
  return memmove(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
  seen(to, n, true, SITE);
  return memset(to, value, n);
}
}

#endif
