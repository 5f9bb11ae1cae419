// Host version of kernels/gpu/atomic.h.
#pragma once

#include <gpu/types.h>

namespace gpu {

template <class T>
GPU_DEVICE T load_relaxed(const T* p) {
  return T(emu::load_strong(p, sizeof(T), emu::Order::relaxed, "load_relaxed"));
}

template <class T>
GPU_DEVICE void store_relaxed(T* p, T value) {
  emu::store_strong(p, value, sizeof(T), emu::Order::relaxed, "store_relaxed");
}

template <class T>
GPU_DEVICE T load_acquire(const T* p) {
  return T(emu::load_strong(p, sizeof(T), emu::Order::acquire, "load_acquire"));
}

template <class T>
GPU_DEVICE void store_release(T* p, T value) {
  emu::store_strong(p, value, sizeof(T), emu::Order::release, "store_release");
}

template <class T>
GPU_DEVICE T fetch_add_relaxed(T* p, T value) {
  return T(emu::update_strong(p, value, sizeof(T), emu::Update::add, emu::Order::relaxed, "fetch_add_relaxed"));
}

template <class T>
GPU_DEVICE T fetch_add_acq_rel(T* p, T value) {
  return T(emu::update_strong(p, value, sizeof(T), emu::Update::add, emu::Order::acquire_release, "fetch_add_acq_rel"));
}

GPU_DEVICE u32 fetch_max_relaxed(u32* p, u32 value) {
  return u32(emu::update_strong(p, value, sizeof(u32), emu::Update::max, emu::Order::relaxed, "fetch_max_relaxed"));
}

// The race detector derives no order from a fence: a kernel must publish with a release of the word itself.
GPU_DEVICE void fence_acq_rel() { emu::fence_gpu(); }

// Nothing to do: a load that finds the same value twice in a row suspends the thread.
GPU_DEVICE void back_off() {}

}  // namespace gpu
