// Code addresses as 32-bit numbers. The race detector stores four of them in every AccessRecord, and the kernels' libraries
// are spread over the 64-bit address space.
#pragma once

#include <cstdint>
#include <string>

namespace emu {

/// The number of a code address; 0 if the address is not in a loaded library.
uint32_t site_number(const void* site);

/// The path of the library that a number's code address is in, and its address within that library. The path is empty if the
/// number is unknown.
std::string site_library(uint32_t number, uint64_t& address);

}  // namespace emu
