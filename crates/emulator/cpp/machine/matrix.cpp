#include "matrix.h"

#include <cstring>

#include "counters.h"
#include "fault.h"
#include "machine.h"
#include "product.h"
#include "race.h"
#include "runtime.h"
#include "shadow.h"
#include "synchronise.h"

#define SITE __builtin_return_address(0)

namespace emu {

namespace {

constexpr uint32_t all_lanes = 0xffffffff;
constexpr uint32_t row_bytes = 16;

struct MoveArgument {
  uint32_t* registers;
  uint32_t count;
  bool transposed;
  uint32_t address;
  const void* site;
};

using Matrix = uint16_t[8][8];

// The rows that the lanes point to. Each row is checked as an access of the lane that gives its address.
void check_rows(const WarpInstruction& lanes, uint32_t count, bool write, char** rows) {
  for (uint32_t lane = 0; lane < 8 * count; lane++) {
    const auto* mine = static_cast<MoveArgument*>(lanes.argument[lane]);
    rows[lane] = static_cast<char*>(own_shared_pointer(mine->address, row_bytes, row_bytes, lanes.name));
    machine->shadow->check_no_copy_in_flight(rows[lane], row_bytes, lanes.name);
    const auto kind = write ? RaceDetector::Kind::write : RaceDetector::Kind::read;
    machine->race->access(lanes.thread[lane]->clock, rows[lane], row_bytes, kind, mine->site);
  }
  machine->counters->matrix_rows(rows, 8 * count);
}

void load(const WarpInstruction& lanes) {
  const auto& first = *static_cast<MoveArgument*>(lanes.argument[0]);
  char* rows[32];
  check_rows(lanes, first.count, false, rows);
  Matrix matrix[4];
  for (uint32_t row = 0; row < 8 * first.count; row++) memcpy(matrix[row / 8][row % 8], rows[row], row_bytes);
  for (uint32_t lane = 0; lane < 32; lane++) {
    uint32_t* registers = static_cast<MoveArgument*>(lanes.argument[lane])->registers;
    const uint32_t r = lane / 4, c = lane % 4 * 2;
    for (uint32_t i = 0; i < first.count; i++) {
      const Matrix& m = matrix[i];
      registers[i] = first.transposed ? m[c][r] | uint32_t(m[c + 1][r]) << 16 : m[r][c] | uint32_t(m[r][c + 1]) << 16;
    }
  }
}

void store(const WarpInstruction& lanes) {
  const auto& first = *static_cast<MoveArgument*>(lanes.argument[0]);
  char* rows[32];
  check_rows(lanes, first.count, true, rows);
  Matrix matrix[4];
  for (uint32_t lane = 0; lane < 32; lane++) {
    const uint32_t* registers = static_cast<MoveArgument*>(lanes.argument[lane])->registers;
    const uint32_t r = lane / 4, c = lane % 4 * 2;
    for (uint32_t i = 0; i < first.count; i++) {
      Matrix& m = matrix[i];
      const auto low = static_cast<uint16_t>(registers[i]), high = static_cast<uint16_t>(registers[i] >> 16);
      (first.transposed ? m[c][r] : m[r][c]) = low;
      (first.transposed ? m[c + 1][r] : m[r][c + 1]) = high;
    }
  }
  for (uint32_t row = 0; row < 8 * first.count; row++) memcpy(rows[row], matrix[row / 8][row % 8], row_bytes);
}

struct MultiplyArgument {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

void count(uint32_t flops) {
  machine->counters->totals.mma_instructions++;
  machine->counters->totals.mma_flops += flops;
}

template <class F>
void for_each_accumulator(const WarpInstruction& lanes, F&& f) {
  for (uint32_t lane = 0; lane < 32; lane++) {
    float* d = static_cast<MultiplyArgument*>(lanes.argument[lane])->d;
    for (uint32_t i = 0; i < 4; i++) f(d[i], lane / 4 + 8 * (i >> 1), lane % 4 * 2 + (i & 1));
  }
}

template <bool IS_BF16>
void multiply_16(const WarpInstruction& lanes) {
  float a[16][16], b[16][8], c[16][8];
  for (uint32_t lane = 0; lane < 32; lane++) {
    const auto& mine = *static_cast<MultiplyArgument*>(lanes.argument[lane]);
    const uint32_t g = lane / 4, t = lane % 4 * 2;
    for (uint32_t i = 0; i < 4; i++) {
      float* to = &a[g + 8 * (i & 1)][t + 8 * (i >> 1)];
      to[0] = widen(static_cast<uint16_t>(mine.a[i]), IS_BF16);
      to[1] = widen(static_cast<uint16_t>(mine.a[i] >> 16), IS_BF16);
    }
    for (uint32_t i = 0; i < 2; i++) {
      b[t + 8 * i][g] = widen(static_cast<uint16_t>(mine.b[i]), IS_BF16);
      b[t + 8 * i + 1][g] = widen(static_cast<uint16_t>(mine.b[i] >> 16), IS_BF16);
    }
  }
  for_each_accumulator(lanes, [&](float& d, uint32_t row, uint32_t column) { c[row][column] = d; });
  multiply_add(c[0], a[0], b[0], 16, 8, 16);
  for_each_accumulator(lanes, [&](float& d, uint32_t row, uint32_t column) { d = c[row][column]; });
  count(2 * 16 * 8 * 16);
}

float as_tf32(uint32_t word) {
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

void multiply_tf32_all(const WarpInstruction& lanes) {
  float a[16][8], b[8][8], c[16][8];
  for (uint32_t lane = 0; lane < 32; lane++) {
    const auto& mine = *static_cast<MultiplyArgument*>(lanes.argument[lane]);
    const uint32_t g = lane / 4, t = lane % 4;
    for (uint32_t i = 0; i < 4; i++) a[g + 8 * (i & 1)][t + 4 * (i >> 1)] = as_tf32(mine.a[i]);
    for (uint32_t i = 0; i < 2; i++) b[t + 4 * i][g] = as_tf32(mine.b[i]);
  }
  for_each_accumulator(lanes, [&](float& d, uint32_t row, uint32_t column) { c[row][column] = d; });
  multiply_add(c[0], a[0], b[0], 16, 8, 8);
  for_each_accumulator(lanes, [&](float& d, uint32_t row, uint32_t column) { d = c[row][column]; });
  count(2 * 16 * 8 * 8);
}

void multiply(const char* name, WarpFunction function, float* d, const uint32_t* a, const uint32_t* b) {
  MultiplyArgument argument{d, a, b};
  warp_instruction(all_lanes, name, function, &argument);
}

}  // namespace

void load_matrix(uint32_t* registers, uint32_t count, bool transposed, uint32_t address) {
  static const char* const names[2][3] = {{"ldmatrix_x1", "ldmatrix_x2", "ldmatrix_x4"},
                                          {"ldmatrix_x1_trans", "ldmatrix_x2_trans", "ldmatrix_x4_trans"}};
  MoveArgument argument{registers, count, transposed, address, SITE};
  warp_instruction(all_lanes, names[transposed][count / 2], load, &argument);
}

void store_matrix(const uint32_t* registers, uint32_t count, bool transposed, uint32_t address) {
  static const char* const names[2][3] = {{"stmatrix_x1", "stmatrix_x2", "stmatrix_x4"},
                                          {"stmatrix_x1_trans", "stmatrix_x2_trans", "stmatrix_x4_trans"}};
  MoveArgument argument{const_cast<uint32_t*>(registers), count, transposed, address, SITE};
  warp_instruction(all_lanes, names[transposed][count / 2], store, &argument);
}

void multiply_f16(float* d, const uint32_t* a, const uint32_t* b) {
  multiply("mma_m16n8k16<f16>", multiply_16<false>, d, a, b);
}

void multiply_bf16(float* d, const uint32_t* a, const uint32_t* b) {
  multiply("mma_m16n8k16<bf16>", multiply_16<true>, d, a, b);
}

void multiply_tf32(float* d, const uint32_t* a, const uint32_t* b) {
  // Hardware ignores the lower 13 bits, so an operand that to_tf32 has not rounded is truncated: up to twice the error, always
  // towards zero.
  for (uint32_t i = 0; i < 6; i++) {
    const uint32_t word = i < 4 ? a[i] : b[i - 4];
    if (word & 0x1fff) fail(Fault::operand, "mma_m16n8k8_tf32: the operand %08x was not rounded by to_tf32", word);
  }
  multiply("mma_m16n8k8_tf32", multiply_tf32_all, d, a, b);
}

}  // namespace emu
