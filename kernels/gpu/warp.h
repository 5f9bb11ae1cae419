// Operations of the 32 lanes of a warp. `members` is a mask of the lanes that take part; all of them must make the same
// call. Only `sync_warp` orders memory. nvcc declares global functions `ballot`, `all` and `any`, so kernels write `gpu::`.
#pragma once

#include <gpu/types.h>

namespace gpu {

constexpr u32 warp_size = 32;
constexpr u32 full_warp = 0xffffffff;

/// All CTAs are one-dimensional.
GPU_DEVICE u32 lane_id() { return threadIdx.x % warp_size; }

GPU_DEVICE u32 warp_id() { return threadIdx.x / warp_size; }

/// The value of `source_lane`, which must be a member. T: u32, i32, float, u64 or double.
template <class T>
GPU_DEVICE T shuffle(T value, u32 source_lane, u32 members = full_warp) {
  return __shfl_sync(members, value, static_cast<int>(source_lane));
}

/// The value of lane `lane_id() ^ lane_mask`.
template <class T>
GPU_DEVICE T shuffle_xor(T value, u32 lane_mask, u32 members = full_warp) {
  return __shfl_xor_sync(members, value, static_cast<int>(lane_mask));
}

/// The value of lane `lane_id() + delta`; the lane's own value where there is no such lane.
template <class T>
GPU_DEVICE T shuffle_down(T value, u32 delta, u32 members = full_warp) {
  return __shfl_down_sync(members, value, delta);
}

/// The value of lane `lane_id() - delta`; the lane's own value where there is no such lane.
template <class T>
GPU_DEVICE T shuffle_up(T value, u32 delta, u32 members = full_warp) {
  return __shfl_up_sync(members, value, delta);
}

/// Waits for the members; what they wrote before is visible to each of them after.
GPU_DEVICE void sync_warp(u32 members = full_warp) { __syncwarp(members); }

/// Bit i is set if lane i's condition holds.
GPU_DEVICE u32 ballot(bool condition, u32 members = full_warp) { return __ballot_sync(members, condition); }

GPU_DEVICE bool all(bool condition, u32 members = full_warp) { return __all_sync(members, condition) != 0; }

GPU_DEVICE bool any(bool condition, u32 members = full_warp) { return __any_sync(members, condition) != 0; }

/// True in one lane of a full warp. From sm_90 on this is elect.sync: the compiler then sees that one thread runs the
/// branch, and needs no loop over lanes for instructions with uniform operands.
GPU_DEVICE bool elect_one() {
#if GPU_TARGET >= 900
  u32 elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected)::"memory");
  return elected != 0;
#else
  return lane_id() == 0;
#endif
}

}  // namespace gpu
