// Which of the three builds this is, and the calls that inform the sanitizers.
//   plain      no instrumentation
//   race       kernels compiled with -fsanitize=thread, whose functions instrument.cpp defines (EMU_RACE)
//   sanitize   AddressSanitizer and UndefinedBehaviorSanitizer
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ADDRESS_SANITIZER 1
#endif
#endif
#ifndef EMU_ADDRESS_SANITIZER
#define EMU_ADDRESS_SANITIZER 0
#endif

#if EMU_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu {

inline void poison(const void* p, size_t n) {
#if EMU_ADDRESS_SANITIZER
  __asan_poison_memory_region(p, n);
#else
  (void)p, (void)n;
#endif
}

inline void unpoison(const void* p, size_t n) {
#if EMU_ADDRESS_SANITIZER
  __asan_unpoison_memory_region(p, n);
#else
  (void)p, (void)n;
#endif
}

}  // namespace emu
