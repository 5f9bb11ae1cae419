// The race build's functions that code compiled with -fsanitize=thread calls before each memory access. Accesses outside the
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

inline void check_access(const void* p, size_t n, bool write, const void* site) {
  if (!self || machine->memory.offset(p) >= emu::Memory::arena_bytes) return;
  if (!machine->memory.accessible(p, n)) {
    emu::fail(emu::Fault::out_of_bounds, "%s of %zu bytes outside every allocation, at @0x%x", write ? "write" : "read",
              n, emu::site_number(site));
  }
  if (machine->memory.is_shared(p)) {
    machine->shadow->check_no_copy_in_flight(p, n, write ? "a write" : "a read");
  } else if (!self->first_access) {
    self->first_access = write ? "a write" : "a read";
  }
  machine->race->access(self->clock, p, n, write ? emu::RaceDetector::Kind::write : emu::RaceDetector::Kind::read, site);
  if (machine->memory.is_shared(p)) machine->counters->shared(p, static_cast<uint32_t>(n), write, site);
}

}  // namespace

#define SITE __builtin_return_address(0)
#define ACCESS_FUNCTIONS(N)                                                           \
  void __tsan_read##N(void* p) { check_access(p, N, false, SITE); }                    \
  void __tsan_write##N(void* p) { check_access(p, N, true, SITE); }                    \
  void __tsan_unaligned_read##N(void* p) { check_access(p, N, false, SITE); }          \
  void __tsan_unaligned_write##N(void* p) { check_access(p, N, true, SITE); }

extern "C" {
ACCESS_FUNCTIONS(1)
ACCESS_FUNCTIONS(2)
ACCESS_FUNCTIONS(4)
ACCESS_FUNCTIONS(8)
ACCESS_FUNCTIONS(16)
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* p, size_t n) { check_access(p, n, false, SITE); }
void __tsan_write_range(void* p, size_t n) { check_access(p, n, true, SITE); }
void* __tsan_memcpy(void* to, const void* from, size_t n) {
  check_access(from, n, false, SITE);
  check_access(to, n, true, SITE);
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  check_access(from, n, false, SITE);
  check_access(to, n, true, SITE);
  return memmove(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
  check_access(to, n, true, SITE);
  return memset(to, value, n);
}
}

#endif
