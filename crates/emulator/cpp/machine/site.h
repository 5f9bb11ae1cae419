// Code addresses as numbers of 32 bits. The race detector keeps four for every place in memory, and kernels lie in
// libraries all over the address space.
#pragma once

#include <cstdint>
#include <string>

namespace emu {

/// The number of a code address; 0 of none.
uint32_t site_number(const void* site);

/// The file of the library that a number's address lies in, and the address within it; empty for a number of none.
std::string site_library(uint32_t number, uint64_t& address);

}  // namespace emu
