// Happens-before between CUDA threads, and the accesses that it does not order.
//
// Each thread knows, of every other, up to which of its releases it has been told: a vector clock. Threads that met at a
// barrier share one vector and differ only in their own entry. A place in memory remembers who wrote it last and who
// read it since; an access by someone who has not been told is a race. CTAs that take over a slot start knowing
// nothing, not even of the CTA that had the slot before: the hardware orders nothing between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "memory.h"

namespace emu {

struct Cta;
struct Thread;

class Race {
 public:
#ifdef EMU_RACE
  static constexpr bool enabled = true;
#else
  static constexpr bool enabled = false;
#endif
  /// Threads of their own for copy engines and tensor cores, used in turn.
  static constexpr uint32_t engines = 64;
  static constexpr uint32_t clock_bits = 19;
  static constexpr uint32_t max_resident_threads = (1u << (32 - clock_bits)) - 1 - engines;

  explicit Race(Memory& memory);
  ~Race();

  void start_launch(uint32_t threads);
  void end_launch();
  void start_cta(const Cta& cta);
  void start_thread(const Thread& thread);

  enum class Kind { read, write, atomic };
  /// An access by the thread with this clock; `site` is a code address for the report.
  void access(uint32_t clock, const void* p, size_t n, Kind kind, const void* site);

  /// Everyone who `arrived` is ordered before everyone in `waiting` goes on.
  void barrier(Thread* const* arrived, size_t arrivals, Thread* const* waiting, size_t waiters);
  void release(uint32_t clock, const void* object);
  void acquire(uint32_t clock, const void* object);
  void forget(const void* object);

  /// An asynchronous operation begun by `clock`: what it does is ordered after that, and nothing is after it until `join`
  /// or an acquire of what it released.
  uint32_t begin_engine(uint32_t clock);
  void join_engine(uint32_t clock, uint32_t engine);

  /// fence.proxy.async by this thread, and whether a place's last writer has executed one since (or never wrote).
  void fence_proxy(uint32_t clock);
  bool proxy_fenced(const void* p, size_t n, uint32_t* writer);

 private:
  using Vector = std::vector<uint32_t>;
  struct Place {
    uint32_t writer;
    uint32_t reader[3];
    uint32_t writer_site;
    uint32_t reader_site[3];
    uint8_t writer_atomic;
    uint8_t reader_atomic[3];
  };
  struct Clock {
    std::shared_ptr<const Vector> told;
    uint32_t own = 0;
    uint32_t born = 0;  // its own entry when the present CTA took the slot
    uint32_t fenced = 0;
  };
  static uint32_t who(uint32_t epoch) { return epoch >> clock_bits; }
  static uint32_t when(uint32_t epoch) { return epoch & ((1u << clock_bits) - 1); }
  bool knows(uint32_t clock, uint32_t epoch) const;
  void tick(uint32_t clock);
  Vector view(uint32_t clock) const;
  [[noreturn]] void report(const char* what, uint32_t clock, uint32_t epoch, const void* p, const void* site,
                           uint32_t other_site);
  Place* place(const void* p) const;

  Memory& memory_;
  Place* places_ = nullptr;
  std::vector<Clock> clocks_;
  std::unordered_map<const void*, std::shared_ptr<const Vector>> objects_;
  uint32_t threads_ = 0;
  uint32_t next_engine_ = 0;
};

/// `site` as an offset that a symboliser can read.
uint32_t site_offset(const void* site);

}  // namespace emu
