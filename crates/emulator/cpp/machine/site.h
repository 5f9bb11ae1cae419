// Code addresses as 32-bit numbers: the race detector keeps four for every place in memory, and the kernels' libraries are
// spread over the address space.
#pragma once

#include <cstdint>
#include <string>

namespace emu {

/// The number of a code address; 0 if the address is in no library.
uint32_t site_number(const void* site);

/// The path of the library of a number's address, and the address within it; empty if the number is unknown.
std::string site_library(uint32_t number, uint64_t& address);

}  // namespace emu
