// Machine is one emulated GPU: its memory and, while a launch runs, its threads, warps and CTAs and what they wait for.
//
// Every CUDA thread is a fiber. One OS thread runs all fibers of a machine and switches only where a thread waits, so the
// emulator needs no locks. Several machines may run at the same time, each on its own OS thread.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "config.h"
#include "fault.h"
#include "fiber.h"
#include "memory.h"

namespace emu {

struct Cta;
struct Cluster;
struct Warp;
class RaceDetector;
class CounterState;
class AsyncState;
class ShadowMemory;
struct ThreadCopies;
struct ThreadStores;
struct MBarriers;
struct Warpgroup;
struct Registers;

struct Index3 {
  uint32_t x = 0, y = 0, z = 0;
};

/// A CUDA thread.
struct Thread {
  Fiber fiber;
  Index3 index;
  uint32_t rank = 0;   // in the CTA
  uint32_t lane = 0;
  uint32_t clock = 0;  // index of the thread's clock in the race detector: slot of the CTA * threads + rank
  Cta* cta = nullptr;
  Warp* warp = nullptr;
  const char* waits = "";  // what the thread waits for, for reports
  uint64_t waits_detail = 0;
  bool done = true;
  // The last polled address and the value found there: a thread that finds the same value again is spinning.
  const void* polled = nullptr;
  uint64_t polled_value = 0;
  // Bytes of shared memory taken so far, without red zones; bytes of red zones between them.
  uint32_t shared_taken = 0;
  uint32_t shared_offset = 0;
  uint32_t vote_round = 0;
  // Null until the thread uses them.
  std::shared_ptr<ThreadCopies> copies;  // cp.async
  std::shared_ptr<ThreadStores> stores;  // bulk copies out of shared memory
  // The name of the first access to global memory that the preceding launch may write (null if there was none), and whether
  // the thread has waited for that launch (grid_dependency_wait).
  const char* first_access = nullptr;
  bool dependency_waited = false;
  // Whether the thread is between cluster_arrive and cluster_wait, and the phase of the cluster's barrier in which it arrived.
  bool cluster_arrived = false;
  uint64_t cluster_phase = 0;
};

/// A warp instruction that some of its lanes have reached; the last lane to arrive carries it out for all.
struct WarpInstruction {
  uint32_t members;
  uint32_t arrived = 0;
  const char* name;
  void* argument[32] = {};
  Thread* thread[32] = {};
};

struct Warp {
  Thread* lane[32] = {};
  uint32_t live = 0;
  std::vector<WarpInstruction> open;
};

/// One of the 16 hardware barriers of a CTA; number 0 is that of __syncthreads.
struct Barrier {
  uint32_t expected = 0;
  uint32_t arrived = 0;
  std::vector<Thread*> all;      // threads that arrived in this phase
  std::vector<Thread*> waiting;  // the threads among them that wait
};

/// An array in shared memory that a kernel took with one call of SharedMemory::take; its offset in the CTA's slot.
struct SharedArray {
  uint32_t offset, bytes;
};

struct Cta {
  Index3 index;
  uint32_t linear = 0;
  uint32_t slot = 0;
  uint32_t rank = 0;  // in the cluster
  Cluster* cluster = nullptr;
  char* shared = nullptr;
  uint32_t shared_bytes = 0;
  uint32_t live = 0;
  std::vector<Thread*> threads;
  std::vector<Warp> warps;
  Barrier barriers[16];
  bool votes[3] = {};
  std::vector<SharedArray> shared_arrays;
  uint32_t copies_in_flight = 0;  // asynchronous copies that read or write this CTA's shared memory
  // Null until the CTA uses them.
  std::shared_ptr<MBarriers> mbarriers;
  std::vector<std::shared_ptr<Warpgroup>> warpgroups;
  std::shared_ptr<Registers> registers;
};

struct Cluster {
  std::vector<Cta*> ctas;
  // The cluster's barrier: threads that have arrived, threads that wait, phases completed.
  uint32_t arrived = 0;
  std::vector<Thread*> waiting;
  uint64_t phase = 0;
  uint32_t live = 0;
};

using Kernel = void (*)(const void* params);

struct KernelInfo {
  const char* name;
  Kernel run;
  uint32_t params_bytes;
  uint32_t max_threads;
};

/// The kernels of all loaded libraries, in the order of loading. The returned reference stays valid.
uint32_t kernel_count();
const KernelInfo& kernel_at(uint32_t index);
void add_kernel(const KernelInfo& kernel);

struct LaunchShape {
  Index3 grid;
  uint32_t threads;
  uint32_t shared_bytes;
  uint32_t cluster;
};

class Machine {
 public:
  Machine();
  ~Machine();

  /// Runs a kernel to its end. Returns false after a fault, which `fault` and `report` describe.
  bool launch(const KernelInfo& kernel, const LaunchShape& shape, const void* params, const Config& config);

  // --- state that the parts of the emulator share while a launch runs ---
  Memory memory;
  Config config{};
  LaunchShape shape{};
  std::unique_ptr<RaceDetector> race;
  std::unique_ptr<CounterState> counters;
  std::unique_ptr<AsyncState> async;
  std::unique_ptr<ShadowMemory> shadow;
  std::vector<std::unique_ptr<Cta>> ctas;  // resident now
  AccessedSet updated;                     // by atomic read-modify-writes
  AccessedSet written;                     // by any store
  AccessedSet read;                        // by any load or copy
  AccessedSet read_as_constant;            // by load_constant and load_constant_once
  uint64_t events = 0;                     // counts the events that could end a wait
  Fault fault = Fault::none;
  std::string report;

  /// Suspends the running thread until `wake`. A deadlock report shows `why`.
  void block(const char* why, uint64_t detail = 0);
  void wake(Thread* thread);
  /// Runs other threads; the calling thread stays runnable.
  void yield(const char* why);
  /// Suspends the calling thread, which polls, until no other thread can run.
  void park_spinner();
  /// Called between two accesses: under the random schedule, sometimes runs other threads.
  void jitter();
  uint64_t random();
  [[noreturn]] void abandon();

  /// Whether these bytes are part of the launch's parameters.
  bool in_params(const void* p, size_t bytes) const;
  const KernelInfo& kernel() const { return *kernel_; }

  /// For reports: what all threads wait for, one line for each group of threads that wait for the same thing.
  std::string describe_threads() const;

 private:
  friend void thread_entry();
  Thread* pick();  // null if no thread is left: continue in the launching thread
  size_t pick_at_random();
  void run_next();
  void start_ctas();
  void start_cluster(uint32_t first_cta, uint32_t slot);
  void finish_thread();
  void retire(Cluster* cluster);
  Thread* fresh_thread();

  Fiber launcher_;
  const KernelInfo* kernel_ = nullptr;
  const void* params_ = nullptr;
  std::deque<Thread*> runnable_;
  std::vector<Thread*> spinners_;
  std::vector<Thread*> pool_;
  Thread* last_finished_ = nullptr;  // its stack may still be in use, so it is not in the pool yet
  std::vector<std::unique_ptr<Thread>> all_threads_;
  std::vector<std::unique_ptr<Cluster>> clusters_;
  std::vector<uint32_t> order_;  // clusters in the order in which they start
  std::vector<uint32_t> free_slots_;
  size_t next_cluster_ = 0;
  uint32_t live_threads_ = 0;
  uint64_t rng_ = 0;
  uint64_t events_at_last_spin_ = 0;
  uint32_t idle_spins_ = 0;
  uint32_t favoured_cta_ = 0;   // index of the resident CTA that the random schedule favours
  uint32_t burst_left_ = 0;     // picks until another CTA is favoured
};

extern thread_local Machine* machine __attribute__((tls_model("initial-exec")));
extern thread_local Thread* self __attribute__((tls_model("initial-exec")));

}  // namespace emu
