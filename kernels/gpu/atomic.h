// Atomic accesses for synchronisation between threads of one GPU: global memory, gpu scope.
//
// The "memory" clobber keeps the compiler from moving other accesses across; in hardware only acquire and release order
// them.
#pragma once

#include <gpu/types.h>

namespace gpu {

// A load of u32 or u64 with the qualifiers given.
#define GPU_ATOMIC_LOAD(QUALIFIERS, T, pointer)                                                              \
  static_assert(same_type<T, u32> || same_type<T, u64>, "u32 or u64");                                       \
  T value;                                                                                                   \
  if constexpr (same_type<T, u32>) {                                                                         \
    asm volatile("ld." QUALIFIERS ".gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(pointer) : "memory");      \
  } else {                                                                                                   \
    asm volatile("ld." QUALIFIERS ".gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(pointer) : "memory");      \
  }                                                                                                          \
  return value;

#define GPU_ATOMIC_STORE(QUALIFIERS, T, pointer, value)                                                      \
  static_assert(same_type<T, u32> || same_type<T, u64>, "u32 or u64");                                       \
  if constexpr (same_type<T, u32>) {                                                                         \
    asm volatile("st." QUALIFIERS ".gpu.global.u32 [%0], %1;" ::"l"(pointer), "r"(value) : "memory");        \
  } else {                                                                                                   \
    asm volatile("st." QUALIFIERS ".gpu.global.u64 [%0], %1;" ::"l"(pointer), "l"(value) : "memory");        \
  }

#define GPU_FETCH_ADD(QUALIFIERS, T, pointer, value)                                                         \
  static_assert(same_type<T, u32> || same_type<T, u64>, "u32 or u64");                                       \
  T before;                                                                                                  \
  if constexpr (same_type<T, u32>) {                                                                         \
    asm volatile("atom.add." QUALIFIERS ".gpu.global.u32 %0, [%1], %2;"                                      \
                 : "=r"(before)                                                                              \
                 : "l"(pointer), "r"(value)                                                                  \
                 : "memory");                                                                                \
  } else {                                                                                                   \
    asm volatile("atom.add." QUALIFIERS ".gpu.global.u64 %0, [%1], %2;"                                      \
                 : "=l"(before)                                                                              \
                 : "l"(pointer), "l"(value)                                                                  \
                 : "memory");                                                                                \
  }                                                                                                          \
  return before;

template <class T>
GPU_DEVICE T load_relaxed(const T* pointer) {
  GPU_ATOMIC_LOAD("relaxed", T, pointer)
}

template <class T>
GPU_DEVICE void store_relaxed(T* pointer, T value) {
  GPU_ATOMIC_STORE("relaxed", T, pointer, value)
}

/// What the releasing thread did before its release is visible to this thread after the load.
template <class T>
GPU_DEVICE T load_acquire(const T* pointer) {
  GPU_ATOMIC_LOAD("acquire", T, pointer)
}

/// What this thread did before is visible to a thread that acquires the value.
template <class T>
GPU_DEVICE void store_release(T* pointer, T value) {
  GPU_ATOMIC_STORE("release", T, pointer, value)
}

/// Returns the value before the addition.
template <class T>
GPU_DEVICE T fetch_add_relaxed(T* pointer, T value) {
  GPU_FETCH_ADD("relaxed", T, pointer, value)
}

/// Returns the value before the addition. Both a release and an acquire: the last of several threads to arrive sees what all
/// of them did before.
template <class T>
GPU_DEVICE T fetch_add_acq_rel(T* pointer, T value) {
  GPU_FETCH_ADD("acq_rel", T, pointer, value)
}

#undef GPU_ATOMIC_LOAD
#undef GPU_ATOMIC_STORE
#undef GPU_FETCH_ADD

/// Stores the larger of both values; returns the value before.
GPU_DEVICE u32 fetch_max_relaxed(u32* pointer, u32 value) {
  u32 before;
  asm volatile("atom.max.relaxed.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(pointer), "r"(value)
               : "memory");
  return before;
}

GPU_DEVICE void fence_acq_rel() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

/// Sleeps for about 20 ns between two polls of a flag, which leaves the issue slots to other warps.
GPU_DEVICE void back_off() { asm volatile("nanosleep.u32 20;" ::: "memory"); }

}  // namespace gpu
