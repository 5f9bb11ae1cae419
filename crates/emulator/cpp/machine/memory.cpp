#include "memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "sanitizer.h"

namespace emu {

void* reserve(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    fprintf(stderr, "emulator: cannot reserve %zu bytes of address space\n", bytes);
    abort();
  }
  return p;
}

void unreserve(void* p, size_t bytes) { munmap(p, bytes); }

namespace {

constexpr size_t alignment = 256;
constexpr size_t red_zone = 256;

size_t rounded(size_t bytes) { return (bytes + alignment - 1) / alignment * alignment + red_zone; }

}  // namespace

Memory::Memory() {
  base_ = static_cast<char*>(reserve(arena_bytes));
  state_ = static_cast<uint8_t*>(reserve(arena_bytes / 16));
  // Global memory is poisoned piece by piece in `allocate`: poisoning all of it here would write all of AddressSanitizer's
  // shadow memory.
}

Memory::~Memory() {
  unpoison(base_, top_);
  for (size_t i = 0; i < slots && EMU_ADDRESS_SANITIZER; i++) unpoison(slot(i), slot_bytes);
  unreserve(base_, arena_bytes);
  unreserve(state_, arena_bytes / 16);
}

char* Memory::allocate(size_t bytes) {
  size_t size = rounded(bytes);
  char* p;
  if (auto found = free_.find(size); found != free_.end()) {
    p = found->second;
    free_.erase(found);
  } else {
    if (top_ == 0) {
      poison(base_, red_zone);
      top_ = red_zone;  // so that an access below the first allocation is found as well
    }
    if (size > global_bytes - top_) return nullptr;
    p = base_ + top_;
    top_ += size;
    poison(p, size);
  }
  live_[p] = bytes;
  open(p, bytes);
  memset(p, 0xff, bytes);
  return p;
}

bool Memory::release(char* p) {
  auto found = live_.find(p);
  if (found == live_.end()) return false;
  close(p, found->second);
  free_.emplace(rounded(found->second), p);
  live_.erase(found);
  return true;
}

std::pair<const char*, const char*> Memory::allocation_of(const void* p) const {
  auto after = live_.upper_bound(const_cast<char*>(static_cast<const char*>(p)));
  const auto& [start, bytes] = *std::prev(after);
  return {start, start + bytes};
}

void Memory::open(char* p, size_t bytes) {
  uint8_t* state = state_ + (offset(p) >> 4);
  memset(state, 16, bytes / 16);
  if (bytes % 16) state[bytes / 16] = static_cast<uint8_t>(bytes % 16);
  unpoison(p, bytes);
}

void Memory::close(char* p, size_t bytes) {
  memset(state_ + (offset(p) >> 4), 0, (bytes + 15) / 16);
  poison(p, (bytes + 15) / 16 * 16);
}

}  // namespace emu
