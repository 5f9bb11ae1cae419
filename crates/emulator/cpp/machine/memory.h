// Device memory: one arena of address space with global memory at the bottom and the CTAs' shared memory above it, and a map
// that says which bytes are accessible.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <utility>

namespace emu {

class Memory {
 public:
  static constexpr size_t global_bytes = size_t(4) << 30;
  /// Address space of one CTA's shared memory, its red zones included.
  static constexpr size_t slot_bytes = 512 << 10;
  static constexpr size_t slots = 512;
  static constexpr size_t arena_bytes = global_bytes + slots * slot_bytes;
  /// Bytes between two arrays in shared memory. A multiple of the swizzle's period of 1024 bytes, so that bits 0 to 9 of an
  /// address are the same as on a GPU.
  static constexpr size_t shared_red_zone = 1024;

  Memory();
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  /// Memory at a multiple of 256 bytes, filled with NaN; null when the arena is full.
  char* allocate(size_t bytes);
  /// False if `p` is not the start of an allocation.
  bool release(char* p);

  char* slot(size_t index) const { return base_ + global_bytes + index * slot_bytes; }
  /// Makes bytes accessible, and inaccessible again. `p` is a multiple of 16.
  void open(char* p, size_t bytes);
  void close(char* p, size_t bytes);

  /// The start and the end of the allocation of global memory that contains `p`.
  std::pair<const char*, const char*> allocation_of(const void* p) const;

  size_t offset(const void* p) const { return static_cast<size_t>(static_cast<const char*>(p) - base_); }
  bool is_global(const void* p) const { return offset(p) < global_bytes; }
  bool is_shared(const void* p) const { return offset(p) - global_bytes < slots * slot_bytes; }

  /// Whether all of `n` bytes at `p` lie in one allocation.
  bool accessible(const void* p, size_t n) const {
    size_t at = offset(p);
    if (at >= arena_bytes || n > arena_bytes - at) return false;
    for (size_t end = at + n; at < end;) {
      size_t in_granule = at & 15, take = end - at < 16 - in_granule ? end - at : 16 - in_granule;
      if (state_[at >> 4] < in_granule + take) return false;
      at += take;
    }
    return true;
  }

 private:
  char* base_;
  uint8_t* state_;  // for every 16 bytes, how many from their start are accessible
  size_t top_ = 0;
  std::map<char*, size_t> live_;
  std::multimap<size_t, char*> free_;
};

/// The part of an allocation that a launch has accessed in some way: from the first such byte to the last.
struct AccessedRange {
  const char* allocation;
  const char* from;
  const char* to;
};

/// Allocations of global memory that a launch has accessed in some way.
class AccessedSet {
 public:
  /// Adds `bytes` at `p`, which lie in one allocation.
  void insert(const Memory& memory, const void* p, size_t bytes) {
    const char* at = static_cast<const char*>(p);
    // Most accesses are of one of a few allocations: the operands of one product.
    for (const Recent& recent : recent_) {
      if (at >= recent.begin && at < recent.end) return widen(*recent.range, at, bytes);
    }
    auto [begin, end] = memory.allocation_of(p);
    AccessedRange& range = ranges_.try_emplace(begin, AccessedRange{begin, at, at + bytes}).first->second;
    recent_[next_++ % std::size(recent_)] = {begin, end, &range};
    widen(range, at, bytes);
  }
  void clear() {
    ranges_.clear();
    for (Recent& recent : recent_) recent = {};
  }
  const std::map<const char*, AccessedRange>& ranges() const { return ranges_; }

 private:
  struct Recent {
    const char *begin = nullptr, *end = nullptr;
    AccessedRange* range = nullptr;
  };

  static void widen(AccessedRange& range, const char* at, size_t bytes) {
    if (at < range.from) range.from = at;
    if (at + bytes > range.to) range.to = at + bytes;
  }

  Recent recent_[4];
  unsigned next_ = 0;
  std::map<const char*, AccessedRange> ranges_;
};

/// Reserves address space, which takes no memory until it is written; aborts the process if there is none.
void* reserve(size_t bytes);
void unreserve(void* p, size_t bytes);

}  // namespace emu
