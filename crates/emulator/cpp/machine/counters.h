// What a launch requested of the memory system. Bytes and instructions are counted at each access. Sectors and bank conflicts
// depend on all 32 accesses of a warp instruction, so accesses are gathered by code address and by how often the lane has been
// there, until every live lane has contributed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "config.h"
#include "memory.h"

namespace emu {

struct Cta;
struct Thread;
struct Warp;

enum class Access : uint32_t { load, once, store, atomic };

class CounterState {
 public:
  explicit CounterState(Memory& memory);
  ~CounterState();

  void start_launch(bool transactions);
  void end_launch();
  void finish_thread(Thread& thread);
  void finish_cta(Cta& cta);

  void global(Access kind, const void* p, uint32_t bytes, const void* site);
  void shared(const void* p, uint32_t bytes, bool write, const void* site);
  /// Rows of 16 bytes that ldmatrix or stmatrix accesses, eight at a time.
  void matrix_rows(char* const* rows, uint32_t n);
  /// An access by a copy engine.
  void engine(const void* p, uint32_t bytes, bool write);

  Counters totals{};

 private:
  struct WarpAccess {
    uint32_t lanes = 0;
    uint32_t bytes = 0;
    const void* address[32] = {};
  };
  struct Site {
    bool is_shared = false;
    Access kind = Access::load;
    uint64_t first = 0;  // the visit that `open.front()` gathers
    uint64_t visits[32] = {};
    std::deque<WarpAccess> open;
  };
  using Sites = std::unordered_map<const void*, Site>;

  void gather(bool is_shared, Access kind, const void* p, uint32_t bytes, const void* site);
  void flush(Site& site, bool all, uint32_t live);
  void count(const Site& site, const WarpAccess& access);
  /// Counts the wavefronts in which shared memory serves these words: as many as the busiest bank has words.
  void count_wavefronts(std::vector<uintptr_t>& words);
  /// Adds to `total` the bytes that this launch has not accessed before.
  void count_distinct(uint16_t* seen, const void* p, uint32_t bytes, uint64_t& total);

  Memory& memory_;
  bool transactions_ = false;
  uint16_t* loaded_;  // for every 4 bytes of global memory, the last launch that loaded them
  uint16_t* stored_;
  uint16_t launch_ = 0;
  std::unordered_map<const Warp*, Sites> warps_;
};

}  // namespace emu
