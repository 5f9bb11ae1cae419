// gpu/mma.h: the functions that every target has.
#include <gpu/block.h>
#include <gpu/memory.h>
#include <gpu/mma.h>
#include <gpu/shared.h>
#include <gpu/warp.h>
#include <test/test.h>

namespace test {

// The row of 16 bytes of a lane. Rows of a matrix are 3 rows apart, so that an error in the order of lanes gives another
// address.
GPU_DEVICE u32 row_of_lane(u32 lane) { return lane % 8 * 3 + lane / 8 * 24; }

template <u32 COUNT>
GPU_DEVICE void store_registers(const u32 (&r)[COUNT], u32*& to) {
  for (u32 i = 0; i < COUNT; i++) store(to + lane_id() * COUNT + i, r[i]);
  to += 32 * COUNT;
}

}  // namespace test

// in[0]: 96 rows of 16 bytes. out[0]: what x1, x2, x4 and their transposed forms load.
GPU_KERNEL(test_matrix_load, LoraTest, 32, 1) {
  using namespace test;
  SharedMemory shared;
  Chunk* rows = shared.take<Chunk>(96);
  for (u32 i = threadIdx.x; i < 96; i += 32) store_shared(rows + i, load(in<Chunk>(params, 0) + i));
  sync_block();
  const u32 address = shared_address(rows + row_of_lane(lane_id()));
  u32* to = out<u32>(params, 0);
  u32 x1[1], x2[2], x4[4];
  ldmatrix_x1(x1, address);
  store_registers(x1, to);
  ldmatrix_x2(x2, address);
  store_registers(x2, to);
  ldmatrix_x4(x4, address);
  store_registers(x4, to);
  ldmatrix_x1_trans(x1, address);
  store_registers(x1, to);
  ldmatrix_x2_trans(x2, address);
  store_registers(x2, to);
  ldmatrix_x4_trans(x4, address);
  store_registers(x4, to);
}

// One MMA per warp. in[0], in[1], in[2]: registers of a, b, d, lane by lane. out[0]: d.
GPU_KERNEL(test_matrix_multiply_f16, LoraTest, 32, 1) {
  using namespace test;
  u32 a[4], b[2];
  float d[4];
  for (u32 i = 0; i < 4; i++) a[i] = load(in<u32>(params, 0) + thread_of_grid() * 4 + i);
  for (u32 i = 0; i < 2; i++) b[i] = load(in<u32>(params, 1) + thread_of_grid() * 2 + i);
  for (u32 i = 0; i < 4; i++) d[i] = load(in<float>(params, 2) + thread_of_grid() * 4 + i);
  mma_m16n8k16<f16>(d, a, b);
  for (u32 i = 0; i < 4; i++) store(out<float>(params, 0) + thread_of_grid() * 4 + i, d[i]);
}

// A whole tile: A [16, 32] and B [32, 8] of f16, by rows in shared memory, in two K steps of 16. out[0]: their product.
GPU_KERNEL(test_matrix_tile, LoraTest, 32, 1) {
  using namespace test;
  SharedMemory shared;
  Chunk* a_rows = shared.take<Chunk>(16 * 4);
  Chunk* b_rows = shared.take<Chunk>(32);
  for (u32 i = threadIdx.x; i < 64; i += 32) store_shared(a_rows + i, load(in<Chunk>(params, 0) + i));
  store_shared(b_rows + threadIdx.x, load(in<Chunk>(params, 1) + threadIdx.x));
  sync_warp();
  float d[4] = {};
  const u32 lane = lane_id();
  for (u32 k = 0; k < 2; k++) {
    u32 a[4], b[2];
    ldmatrix_x4(a, shared_address(a_rows + lane % 16 * 4 + 2 * k + lane / 16));
    ldmatrix_x2_trans(b, shared_address(b_rows + 16 * k + lane % 16));
    mma_m16n8k16<f16>(d, a, b);
  }
  for (u32 i = 0; i < 4; i++) {
    store(out<float>(params, 0) + (lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2, d[i]);
  }
}
