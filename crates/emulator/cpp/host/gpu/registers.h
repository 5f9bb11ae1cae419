// Host version of kernels/gpu/registers.h: the machine counts the registers of each warp but moves no values.
#pragma once

#include <machine/registers.h>

#include <gpu/types.h>

namespace gpu {

template <int N>
GPU_DEVICE void increase_registers() {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0, "N must be 24 to 256 in steps of 8");
  emu::increase_registers(N);
}

template <int N>
GPU_DEVICE void decrease_registers() {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0, "N must be 24 to 256 in steps of 8");
  emu::decrease_registers(N);
}

}  // namespace gpu
