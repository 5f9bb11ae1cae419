// How a launch runs.
#pragma once

#include <cstdint>

namespace emu {

/// Which of the runnable threads runs next, and the order in which CTAs start.
enum class Schedule : uint32_t { first_in, last_in, random };

/// When an asynchronous operation completes: when it is waited for, when it is issued, or at a random moment between.
enum class Completion : uint32_t { late, eager, random };

/// RawConfig on the Rust side has the same layout.
struct Config {
  Schedule schedule;
  Completion completion;
  uint64_t seed;
  /// CTAs that are resident at the same time; others start as these end.
  uint32_t resident_ctas;
  /// Whether warp instructions are grouped to count transactions and bank conflicts.
  uint32_t count_transactions;
  /// Dynamic shared memory of a CTA, at most, in bytes.
  uint32_t shared_bytes_limit;
  uint32_t reserved;
};

/// The Rust side has a struct of the same layout. Global memory is counted as threads and copy engines request it.
struct Counters {
  uint64_t load_bytes, load_instructions, load_sectors, load_ideal_sectors;
  uint64_t once_bytes, once_instructions, once_sectors, once_ideal_sectors;
  uint64_t store_bytes, store_instructions, store_sectors, store_ideal_sectors;
  uint64_t atomic_bytes, atomic_instructions;
  uint64_t async_bytes;
  uint64_t distinct_load_bytes, distinct_store_bytes;
  uint64_t shared_wavefronts, shared_conflicts;
  uint64_t mma_instructions, wgmma_instructions, mma_flops;
  uint64_t switches, spins;
  uint64_t dependency_waits;
};

}  // namespace emu
