// Asynchronous copies from global to shared memory (cp.async). They complete in groups; every thread has its own groups.
// Other threads see a copy after a `copy_async_wait` of the copying thread and a barrier. On sm_75 a copy is a load and a
// store, complete at once.
#pragma once

#include <gpu/memory.h>

namespace gpu {

/// Copies 16 bytes, bypassing L1. Both addresses are multiples of 16. Only the first `bytes` are read, the rest becomes
/// zero.
GPU_DEVICE void copy_async_16(u32 shared_dst, const void* src, u32 bytes = 16) {
#if GPU_TARGET >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_dst), "l"(src), "r"(bytes) : "memory");
#else
  Chunk chunk = {};
  if (bytes == 16) {
    chunk = load(static_cast<const Chunk*>(src));
  } else {
    const u8* source = static_cast<const u8*>(src);
#pragma unroll
    for (u32 i = 0; i < 16; ++i) {
      if (i < bytes) chunk.word[i / 4] |= u32{load(source + i)} << 8 * (i % 4);
    }
  }
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared_dst), "r"(chunk.word[0]), "r"(chunk.word[1]),
               "r"(chunk.word[2]), "r"(chunk.word[3])
               : "memory");
#endif
}

/// Copies 4 bytes, through L1. Both addresses are multiples of 4. Only the first `bytes` are read, the rest becomes zero.
GPU_DEVICE void copy_async_4(u32 shared_dst, const void* src, u32 bytes = 4) {
#if GPU_TARGET >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_dst), "l"(src), "r"(bytes) : "memory");
#else
  u32 word = 0;
  if (bytes == 4) {
    word = load(static_cast<const u32*>(src));
  } else {
    const u8* source = static_cast<const u8*>(src);
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      if (i < bytes) word |= u32{load(source + i)} << 8 * i;
    }
  }
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(shared_dst), "r"(word) : "memory");
#endif
}

/// Closes a group: the copies since the last commit.
GPU_DEVICE void copy_async_commit() {
#if GPU_TARGET >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits until at most the `N` latest groups of this thread are incomplete.
template <int N>
GPU_DEVICE void copy_async_wait() {
  static_assert(N >= 0, "a number of groups");
#if GPU_TARGET >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

}  // namespace gpu
