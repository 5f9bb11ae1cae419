// Global and shared memory, barriers, warp instructions, registers.
#include <gpu/registers.h>
#include <misuse.h>

MISUSE(load_misaligned) { load(reinterpret_cast<const u64*>(words_in(params) + 1)); }
MISUSE(load_outside) { load(words_in(params) + 4096 + threadIdx.x); }
MISUSE(store_outside) { store(words_out(params) - 1, 7u); }
MISUSE(atomic_outside) { fetch_add_relaxed(words_out(params) + 4096, 1u); }
MISUSE(plain_store_outside) { words_out(params)[4096] = 1; }
MISUSE(dependency_ignored) {
  const u32 early = load(words_in(params));
  grid_dependency_wait();
  store(words_out(params), early);
}
MISUSE(division_by_zero) { words_out(params)[0] = threadIdx.x / (blockDim.x - 128); }
MISUSE(null) { *reinterpret_cast<volatile u32*>(u64{8}) = 1; }
MISUSE(shared_outside) {
  SharedMemory shared;
  Chunk* chunks = shared.take<Chunk>(4);
  if (threadIdx.x == 0) store_shared(chunks + 4, Chunk{});
}
MISUSE(shared_too_much) { SharedMemory().take<u8>((64 << 10) + 16); }
MISUSE(shared_aligned_too_much) { SharedMemory().take<u8, 2048>(16); }
MISUSE(shared_too_many_pieces) {
  SharedMemory shared;
  for (u32 i = 0; i < 600; i++) shared.take<u32>(1);
}
MISUSE(address_of_global) { shared_address(words_in(params)); }

// Unordered accesses, which only the race build finds.
MISUSE(shared_uninitialised) {
  SharedMemory shared;
  u32* word = shared.take<u32>(1);
  if (threadIdx.x == 0) store(words_out(params), *word);
}
MISUSE(read_after_write) {
  u32* word = SharedMemory().take<u32>(1);
  if (threadIdx.x == 0) *word = 1;
  if (threadIdx.x == 1) store(words_out(params), *word);
}
MISUSE(write_after_write) { store(words_out(params), threadIdx.x); }
MISUSE(write_after_read) {
  load(words_in(params));
  if (threadIdx.x == 64) store(words_in(params), 1u);
}
// A relaxed flag orders nothing.
MISUSE(relaxed_flag) {
  if (threadIdx.x == 0) {
    store(words_out(params), 5u);
    store_relaxed(words_out(params) + 1, 1u);
  } else if (threadIdx.x == 32) {
    while (load_relaxed(words_out(params) + 1) != 1) back_off();
    load(words_out(params));
  }
}

MISUSE(barrier_counts) { sync_named(1, threadIdx.x < 32 ? 64 : 128); }
MISUSE(barrier_number) { sync_named(16, 64); }
MISUSE(barrier_part_of_a_warp) { arrive_named(1, 48); }
MISUSE(barrier_of_too_many) { sync_named(1, 160); }
MISUSE(barrier_not_reached) {
  if (threadIdx.x < 64) sync_named(2, 96);
}
MISUSE(flag_never_set) {
  while (load_relaxed(words_out(params)) != 12345) back_off();
}

MISUSE(shuffle_not_a_member) { shuffle(threadIdx.x, 0, 0xfffffffe); }
MISUSE(shuffle_exited) {
  if (lane_id() == 7) return;
  shuffle_xor(threadIdx.x, 1);
}
MISUSE(shuffle_from_outside) {
  if (lane_id() < 16) shuffle(threadIdx.x, 20, 0xffff);
}
MISUSE(warp_diverged) {
  if (lane_id() < 16) {
    sync_warp();
  } else {
    sync_warp(0xffff8000);
  }
}
MISUSE(warp_at_two_places) {
  if (lane_id() < 16) {
    gpu::ballot(true);
  } else {
    sync_warp();
  }
}

MISUSE(registers_of_half_a_group) { decrease_registers<24>(); }
MISUSE(registers_decrease_to_more) { decrease_registers<256>(); }
MISUSE(registers_increase_to_less) { increase_registers<24>(); }
MISUSE(registers_over_budget) { increase_registers<256>(); }
