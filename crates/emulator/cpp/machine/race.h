// Happens-before between CUDA threads, and the accesses that it does not order.
//
// Each thread has a vector clock: for every other thread, the last of its releases that is ordered before this thread.
// Threads that met at a barrier share one vector and differ only in their own entry. A place in memory keeps its last writer
// and the readers since; an access that is not ordered after them is a race. Each asynchronous operation is a thread of its
// own, ordered after its issuer and before its waiter. A CTA that takes over a slot starts with an empty clock, even with
// respect to the CTA that had the slot before: hardware orders nothing between them.
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
  /// Clocks for asynchronous operations, used in turn.
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

  /// All threads in `arrived` are ordered before what the threads in `waiting` do next.
  void barrier(Thread* const* arrived, size_t arrivals, Thread* const* waiting, size_t waiters);
  void release(uint32_t clock, const void* object);
  void acquire(uint32_t clock, const void* object);
  void forget(const void* object);

  using Vector = std::vector<uint32_t>;
  /// An asynchronous operation. It is ordered after what its issuer had done when it issued the operation, and after what
  /// was ordered before the issuer then. Only `join`, or an acquire of what it released, is ordered after it.
  struct Engine {
    uint32_t id = 0, when = 0;
    uint32_t parent = no_clock, parent_born = 0, parent_own = 0;
    std::shared_ptr<const Vector> told;
  };
  Engine begin_engine(uint32_t clock);
  /// An operation that several threads issue together: it is ordered after what is ordered before all of them.
  Engine begin_engine(Thread* const* threads, size_t n);
  /// Whether an operation that this thread issued now would be ordered after the same accesses.
  bool begun_now(const Engine& engine, uint32_t clock) const;
  void access(const Engine& engine, const void* p, size_t n, Kind kind, const void* site);
  void release(const Engine& engine, const void* object);
  void join(Thread* const* threads, size_t n, const Engine& engine);
  /// An acquire of `to` from now on acquires what was released to `from`, and nothing older.
  void inherit(const void* to, const void* from);

  /// fence.proxy.async by this thread, on shared or global memory.
  void fence_proxy(uint32_t clock, bool shared);
  /// Whether an operation of the async proxy, issued by the thread `clock`, may access what ordinary writes left there. In
  /// the shared memory of its own CTA, the writing thread must have fenced since. A write of another CTA to global memory
  /// needs a fence of the issuing thread after the write was ordered before it. In the other cases either fence is enough.
  bool proxy_fenced(uint32_t clock, const void* p, size_t n, uint32_t* writer) const;

  /// Whether anything that a thread of the CTA did is ordered before this thread, so that the CTA has started.
  bool knows_started(uint32_t clock, const Cta& cta) const;
  /// Whether all accesses to the CTA's shared memory, also those of other CTAs, are ordered before its exit.
  bool may_exit(const Cta& cta) const;

 private:
  static constexpr uint32_t no_clock = ~0u;
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
    uint32_t born = 0;  // own entry when the present CTA took the slot
    uint32_t fenced[2] = {};                          // own entry at the last proxy fence: global, shared
    std::shared_ptr<const Vector> told_at_fence[2];  // the vector at that fence
  };
  /// What makes an access: a thread or an asynchronous operation.
  struct Actor {
    uint32_t epoch, born;
    uint32_t parent, parent_born, parent_own;
    const Vector* told;
  };
  static uint32_t who(uint32_t epoch) { return epoch >> clock_bits; }
  static uint32_t when(uint32_t epoch) { return epoch & ((1u << clock_bits) - 1); }
  static bool knows(const Actor& actor, uint32_t epoch);
  Actor actor(uint32_t clock) const;
  static Actor actor(const Engine& engine);
  void tick(uint32_t clock);
  Vector view(uint32_t clock) const;
  void access(const Actor& actor, const void* p, size_t n, Kind kind, const void* site);
  void release(Vector view, const void* object);
  [[noreturn]] void report(const char* what, const Actor& actor, uint32_t epoch, const void* p, const void* site,
                           uint32_t other_site);
  Place* place(const void* p) const;

  Memory& memory_;
  Place* places_ = nullptr;
  std::vector<Clock> clocks_;
  std::unordered_map<const void*, std::shared_ptr<const Vector>> objects_;
  uint32_t threads_ = 0;
  uint32_t next_engine_ = 0;
  // The last merge of an acquire, kept because the threads of a barrier often make the same one.
  std::shared_ptr<const Vector> merged_from_, merged_with_, merged_;
};

}  // namespace emu
