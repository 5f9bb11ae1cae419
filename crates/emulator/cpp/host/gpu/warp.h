// Host version of kernels/gpu/warp.h.
#pragma once

#include <cstring>

#include <gpu/types.h>

namespace gpu {

constexpr u32 warp_size = 32;
constexpr u32 full_warp = 0xffffffff;

GPU_DEVICE u32 lane_id() { return emu::lane(); }
GPU_DEVICE u32 warp_id() { return threadIdx.x / warp_size; }

template <class T>
GPU_DEVICE T shuffle_from(T value, u32 source, u32 members, const char* name) {
  u64 word = 0;
  memcpy(&word, &value, sizeof(T));
  word = emu::shuffle(word, source, members, name);
  memcpy(&value, &word, sizeof(T));
  return value;
}

template <class T>
GPU_DEVICE T shuffle(T value, u32 source_lane, u32 members = full_warp) {
  return shuffle_from(value, source_lane % warp_size, members, "shuffle");
}

template <class T>
GPU_DEVICE T shuffle_xor(T value, u32 lane_mask, u32 members = full_warp) {
  return shuffle_from(value, lane_id() ^ lane_mask, members, "shuffle_xor");
}

template <class T>
GPU_DEVICE T shuffle_down(T value, u32 delta, u32 members = full_warp) {
  u32 source = lane_id() + delta;
  return shuffle_from(value, source < warp_size ? source : lane_id(), members, "shuffle_down");
}

template <class T>
GPU_DEVICE T shuffle_up(T value, u32 delta, u32 members = full_warp) {
  return shuffle_from(value, lane_id() >= delta ? lane_id() - delta : lane_id(), members, "shuffle_up");
}

GPU_DEVICE void sync_warp(u32 members = full_warp) { emu::sync_warp(members); }
GPU_DEVICE u32 ballot(bool vote, u32 members = full_warp) { return emu::ballot(vote, members, "ballot"); }
GPU_DEVICE bool all(bool vote, u32 members = full_warp) { return emu::ballot(vote, members, "all") == members; }
GPU_DEVICE bool any(bool vote, u32 members = full_warp) { return emu::ballot(vote, members, "any") != 0; }

// Hardware may elect any lane. This version elects the last, because a kernel is most likely to rely on lane 0 by mistake.
GPU_DEVICE bool elect_one() { return lane_id() == 31; }

}  // namespace gpu
