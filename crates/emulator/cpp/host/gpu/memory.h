// Host version of kernels/gpu/memory.h.
#pragma once

#include <gpu/types.h>

namespace gpu {

template <class T>
GPU_DEVICE T load(const T* p) {
  T value;
  emu::load_global(&value, p, sizeof(T), emu::Cache::normal, "load");
  return value;
}

template <class T>
GPU_DEVICE void store(T* p, T value) {
  emu::store_global(p, &value, sizeof(T), "store");
}

template <class T>
GPU_DEVICE T load_input(const T* p) {
  T value;
  emu::load_global(&value, p, sizeof(T), emu::Cache::normal, "load_input");
  return value;
}

template <class T>
GPU_DEVICE T load_constant(const T* p) {
  T value;
  emu::load_global(&value, p, sizeof(T), emu::Cache::normal, "load_constant", true);
  return value;
}

GPU_DEVICE Chunk load_constant_once(const Chunk* p) {
  Chunk value;
  emu::load_global(&value, p, sizeof(Chunk), emu::Cache::once, "load_constant_once", true);
  return value;
}

GPU_DEVICE Chunk load_input_once(const Chunk* p) {
  Chunk value;
  emu::load_global(&value, p, sizeof(Chunk), emu::Cache::once, "load_input_once");
  return value;
}

// Only a hint on hardware; the machine has no caches.
GPU_DEVICE void prefetch_l2(const void*) {}

GPU_DEVICE Chunk load_shared(const Chunk* p) {
  Chunk value;
  emu::load_shared(&value, p, sizeof(Chunk), "load_shared");
  return value;
}

GPU_DEVICE void store_shared(Chunk* p, Chunk value) { emu::store_shared(p, &value, sizeof(Chunk), "store_shared"); }

}  // namespace gpu
