// The race detector: it computes the happens-before order between CUDA threads and reports accesses that it does not order.
//
// Each thread has a vector clock: for every other thread, the last of its releases that happens before this thread. Threads
// that met at a barrier share one vector and differ only in their own entry. For every 2 bytes of memory an AccessRecord
// holds the last writer and the readers since; an access that does not happen after them is a race. Each asynchronous
// operation has a clock of its own: it happens after its issue and before the end of the wait for it. A CTA that takes over
// a slot starts with an empty vector, even towards the CTA that had the slot before: hardware orders nothing between them.
//
// An epoch is one thread's clock and a time of it, in 32 bits.
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

class RaceDetector {
 public:
#ifdef EMU_RACE
  static constexpr bool enabled = true;
#else
  static constexpr bool enabled = false;
#endif
  /// Clocks for asynchronous operations, used in turn.
  static constexpr uint32_t async_clocks = 64;
  static constexpr uint32_t clock_bits = 19;
  static constexpr uint32_t max_resident_threads = (1u << (32 - clock_bits)) - 1 - async_clocks;

  explicit RaceDetector(Memory& memory);
  ~RaceDetector();

  void start_launch(uint32_t threads);
  void end_launch();
  void start_cta(const Cta& cta);
  void start_thread(const Thread& thread);

  enum class Kind { read, write, atomic };
  /// An access by the thread with this clock; `site` is a code address for the report.
  void access(uint32_t clock, const void* p, size_t n, Kind kind, const void* site);

  /// What the threads in `arrived` have done happens before what the threads in `waiting` do next.
  void barrier(Thread* const* arrived, size_t arrivals, Thread* const* waiting, size_t waiters);
  void release(uint32_t clock, const void* object);
  void acquire(uint32_t clock, const void* object);
  /// Drops what was released to `object`.
  void forget(const void* object);

  using Vector = std::vector<uint32_t>;
  /// An asynchronous operation. It happens after all that its issuer (`parent`) had done, and all that happened before the
  /// issuer, when it was issued. A thread happens after it only by `join`, or by an acquire of what it released.
  struct AsyncOperation {
    uint32_t id = 0, time = 0;
    uint32_t parent = no_clock, parent_start = 0, parent_time = 0;
    std::shared_ptr<const Vector> vector;
  };
  AsyncOperation begin_operation(uint32_t clock);
  /// An operation that several threads issue together: it happens after what happens before every one of them.
  AsyncOperation begin_operation(Thread* const* threads, size_t n);
  /// Whether an operation that this thread issued now would happen after exactly the same accesses as this one.
  bool is_current(const AsyncOperation& operation, uint32_t clock) const;
  void access(const AsyncOperation& operation, const void* p, size_t n, Kind kind, const void* site);
  void release(const AsyncOperation& operation, const void* object);
  void join(Thread* const* threads, size_t n, const AsyncOperation& operation);
  /// Replaces what was released to `to` by what was released to `from`.
  void copy_releases(const void* to, const void* from);

  /// Records a fence.proxy.async of this thread, for shared or for global memory.
  void note_proxy_fence(uint32_t clock, bool shared);
  /// Whether proxy fences allow an operation of the async proxy, issued by the thread `clock`, to access these bytes after
  /// the ordinary writes to them. Needed is: for a write to the issuer's own shared memory, a later fence of the writer; for
  /// another CTA's write to global memory, a fence of the issuer after that write happened before it; otherwise either one.
  /// If the answer is no, `writer` is the writing thread's rank in its CTA.
  bool proxy_fenced(uint32_t clock, const void* p, size_t n, uint32_t* writer) const;

  /// Whether anything that a thread of the CTA did happens before this thread, which shows that the CTA has started.
  bool knows_started(uint32_t clock, const Cta& cta) const;
  /// Whether all accesses to the CTA's shared memory, those of other CTAs included, happen before the CTA's exit.
  bool may_exit(const Cta& cta) const;

 private:
  static constexpr uint32_t no_clock = ~0u;
  /// The last write to 2 bytes, and the reads since, each as the epoch of the access.
  struct AccessRecord {
    uint32_t writer;
    uint32_t reader[3];
    uint32_t writer_site;
    uint32_t reader_site[3];
    uint8_t writer_atomic;
  };
  struct Clock {
    std::shared_ptr<const Vector> vector;
    uint32_t time = 0;                                 // the thread's entry for itself, which replaces the vector's
    uint32_t start_time = 0;                           // `time` when the present CTA took the slot
    uint32_t fence_time[2] = {};                       // `time` at the last proxy fence: global, shared
    std::shared_ptr<const Vector> vector_at_fence[2];  // `vector` at that fence
  };
  /// What makes an access: a thread or an asynchronous operation.
  struct Actor {
    uint32_t epoch, start_time;
    uint32_t parent, parent_start, parent_time;
    const Vector* vector;
  };
  static uint32_t clock_of(uint32_t epoch) { return epoch >> clock_bits; }
  static uint32_t time_of(uint32_t epoch) { return epoch & ((1u << clock_bits) - 1); }
  static bool happens_before(uint32_t epoch, const Actor& actor);
  Actor actor(uint32_t clock) const;
  static Actor actor(const AsyncOperation& operation);
  void tick(uint32_t clock);
  Vector view(uint32_t clock) const;
  void access(const Actor& actor, const void* p, size_t n, Kind kind, const void* site);
  void release(Vector view, const void* object);
  [[noreturn]] void report(const char* what, const Actor& actor, uint32_t epoch, const void* p, const void* site,
                           uint32_t other_site);
  AccessRecord* record(const void* p) const;

  Memory& memory_;
  AccessRecord* records_ = nullptr;
  std::vector<Clock> clocks_;
  std::unordered_map<const void*, std::shared_ptr<const Vector>> objects_;
  uint32_t threads_ = 0;
  uint32_t next_async_clock_ = 0;
  // The operands and the result of the last merge of two vectors: the threads of a barrier often repeat the same merge.
  std::shared_ptr<const Vector> merged_from_, merged_with_, merged_;
};

}  // namespace emu
