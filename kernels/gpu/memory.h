// Loads and stores of global memory, and accesses of 16 bytes of shared memory.
//
// Every access is volatile, so that it is issued where the kernel has it: a load that is meant to be in flight early must
// not sink to its first use. Accesses of memory that another thread may write also have the "memory" clobber, which orders
// them with plain accesses and barriers. Addresses are generic; global memory has the same address in both spaces.
#pragma once

#include <gpu/types.h>

namespace gpu {

// One load of sizeof(T) bytes. An 8-bit value takes a 32-bit register, because inline assembly has none of less than 16
// bits.
#define GPU_LOAD(INSTRUCTION, T, pointer, ...)                                                                   \
  if constexpr (sizeof(T) == 1) {                                                                                \
    u32 value;                                                                                                   \
    asm volatile(INSTRUCTION ".u8 %0, [%1];" : "=r"(value) : "l"(pointer) : __VA_ARGS__);                        \
    return __builtin_bit_cast(T, static_cast<u8>(value));                                                        \
  } else if constexpr (sizeof(T) == 2) {                                                                         \
    u16 value;                                                                                                   \
    asm volatile(INSTRUCTION ".u16 %0, [%1];" : "=h"(value) : "l"(pointer) : __VA_ARGS__);                       \
    return __builtin_bit_cast(T, value);                                                                         \
  } else if constexpr (sizeof(T) == 4) {                                                                         \
    u32 value;                                                                                                   \
    asm volatile(INSTRUCTION ".u32 %0, [%1];" : "=r"(value) : "l"(pointer) : __VA_ARGS__);                       \
    return __builtin_bit_cast(T, value);                                                                         \
  } else if constexpr (sizeof(T) == 8) {                                                                         \
    u64 value;                                                                                                   \
    asm volatile(INSTRUCTION ".u64 %0, [%1];" : "=l"(value) : "l"(pointer) : __VA_ARGS__);                       \
    return __builtin_bit_cast(T, value);                                                                         \
  } else {                                                                                                       \
    static_assert(same_type<T, Chunk>, "1, 2, 4, 8 bytes, or a Chunk");                                          \
    Chunk value;                                                                                                 \
    asm volatile(INSTRUCTION ".v4.u32 {%0, %1, %2, %3}, [%4];"                                                   \
                 : "=r"(value.word[0]), "=r"(value.word[1]), "=r"(value.word[2]), "=r"(value.word[3])            \
                 : "l"(pointer)                                                                                  \
                 : __VA_ARGS__);                                                                                 \
    return value;                                                                                                \
  }

/// Loads from memory that threads of this launch may write.
template <class T>
GPU_DEVICE T load(const T* pointer) {
  GPU_LOAD("ld.global", T, pointer, "memory")
}

/// Loads what this launch does not write, but a launch shortly before it may have written: x, dy, queries, keys, gradients. The
/// non-coherent path is not for these: with programmatic dependent launch its line in L1 may be older than that launch.
template <class T>
GPU_DEVICE T load_input(const T* pointer) {
  GPU_LOAD("ld.global", T, pointer)
}

/// Loads weights, biases and tables, which neither this launch nor one shortly before it writes: through the non-coherent
/// path, kept in L1.
template <class T>
GPU_DEVICE T load_constant(const T* pointer) {
  GPU_LOAD("ld.global.nc", T, pointer)
}

#undef GPU_LOAD

template <class T>
GPU_DEVICE void store(T* pointer, T value) {
  if constexpr (sizeof(T) == 1) {
    asm volatile("st.global.u8 [%0], %1;" ::"l"(pointer), "r"(u32{__builtin_bit_cast(u8, value)}) : "memory");
  } else if constexpr (sizeof(T) == 2) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(pointer), "h"(__builtin_bit_cast(u16, value)) : "memory");
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(pointer), "r"(__builtin_bit_cast(u32, value)) : "memory");
  } else if constexpr (sizeof(T) == 8) {
    asm volatile("st.global.u64 [%0], %1;" ::"l"(pointer), "l"(__builtin_bit_cast(u64, value)) : "memory");
  } else {
    static_assert(same_type<T, Chunk>, "1, 2, 4, 8 bytes, or a Chunk");
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(pointer), "r"(value.word[0]), "r"(value.word[1]),
                 "r"(value.word[2]), "r"(value.word[3])
                 : "memory");
  }
}

// The cache hints of a load of what is read once: no line in L1, and L2 also fetches the neighbouring sectors.
#if GPU_TARGET >= 800
#define GPU_READ_ONCE ".L1::no_allocate.L2::128B"
#else
#define GPU_READ_ONCE ""
#endif

/// load_constant of weights that are read once: they are not kept in L1, so that x stays there.
GPU_DEVICE Chunk load_constant_once(const Chunk* pointer) {
  Chunk value;
  asm volatile("ld.global.nc" GPU_READ_ONCE ".v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.word[0]), "=r"(value.word[1]), "=r"(value.word[2]), "=r"(value.word[3])
               : "l"(pointer));
  return value;
}

/// load_input of what is read once, such as the keys and values of a cache.
GPU_DEVICE Chunk load_input_once(const Chunk* pointer) {
  Chunk value;
  asm volatile("ld.global" GPU_READ_ONCE ".v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.word[0]), "=r"(value.word[1]), "=r"(value.word[2]), "=r"(value.word[3])
               : "l"(pointer));
  return value;
}

#undef GPU_READ_ONCE

/// Prefetches the line of an address into L2. The address must be valid.
GPU_DEVICE void prefetch_l2(const void* pointer) { asm volatile("prefetch.global.L2 [%0];" ::"l"(pointer)); }

/// Loads 16 bytes of shared memory in one access, which the compiler does not promise for a plain load.
GPU_DEVICE Chunk load_shared(const Chunk* pointer) {
  Chunk value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.word[0]), "=r"(value.word[1]), "=r"(value.word[2]), "=r"(value.word[3])
               : "r"(static_cast<u32>(__cvta_generic_to_shared(pointer)))
               : "memory");
  return value;
}

/// Stores 16 bytes of shared memory in one access.
GPU_DEVICE void store_shared(Chunk* pointer, Chunk value) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(static_cast<u32>(__cvta_generic_to_shared(pointer))),
               "r"(value.word[0]), "r"(value.word[1]), "r"(value.word[2]), "r"(value.word[3])
               : "memory");
}

}  // namespace gpu
