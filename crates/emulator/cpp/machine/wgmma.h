// wgmma: asynchronous MMAs of a warpgroup.
#pragma once

#include <cstdint>

#include "wgmma_operand.h"

namespace emu {

struct Thread;

struct WgmmaInstruction {
  uint64_t a = 0, b = 0;  // descriptors
  bool a_in_registers = false;
  bool a_mn_major = false, b_mn_major = false;
  bool is_bf16 = false;
  uint32_t columns = 0;  // N
  bool accumulate = false;

  bool operator==(const WgmmaInstruction& o) const {
    return a == o.a && b == o.b && a_in_registers == o.a_in_registers && a_mn_major == o.a_mn_major &&
           b_mn_major == o.b_mn_major && is_bf16 == o.is_bf16 && columns == o.columns && accumulate == o.accumulate;
  }
};

void wgmma_fence();
/// `d` are the thread's N / 2 accumulators; `a` its four registers of A if A is in registers, else null. Neither may move
/// until the wait for the MMA.
void wgmma(const WgmmaInstruction& instruction, float* d, const uint32_t* a);
void wgmma_commit();
void wgmma_wait(uint32_t groups);
/// Faults if these accumulators belong to an MMA that has not been waited for.
void wgmma_fence_operands(const float* d);

void check_wgmma_at_exit(const Thread& thread);

}  // namespace emu
