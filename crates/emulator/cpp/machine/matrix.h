// Matrix instructions of a warp: ldmatrix, stmatrix, mma.sync.
#pragma once

#include <cstdint>

namespace emu {

/// ldmatrix and stmatrix: move `count` 8×8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
void load_matrix(uint32_t* registers, uint32_t count, bool transposed, uint32_t address);
void store_matrix(const uint32_t* registers, uint32_t count, bool transposed, uint32_t address);
/// d += a·b, 16×8 += 16×16 · 16×8.
void multiply_f16(float* d, const uint32_t* a, const uint32_t* b);
void multiply_bf16(float* d, const uint32_t* a, const uint32_t* b);
/// d += a·b, 16×8 += 16×8 · 8×8. Operands are f32 whose lower 13 bits are zero.
void multiply_tf32(float* d, const uint32_t* a, const uint32_t* b);

}  // namespace emu
