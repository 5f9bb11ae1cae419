// setmaxnreg: moves registers from one warpgroup of a CTA to another.
#pragma once

#include <cstdint>

namespace emu {

void increase_registers(uint32_t to);
void decrease_registers(uint32_t to);

}  // namespace emu
