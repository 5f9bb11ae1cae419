// gpu/mma.h: fragments back to shared memory.
//
// targets: sm_90a sm_100 sm_120
#include <gpu/block.h>
#include <gpu/memory.h>
#include <gpu/mma.h>
#include <gpu/shared.h>
#include <gpu/warp.h>
#include <test/test.h>

// in[0]: four registers per lane. out[0]: for each of the two forms 96 rows of 16 bytes, of which it wrote 32.
GPU_KERNEL(test_matrix_store, LoraTest, 32, 1) {
  using namespace test;
  SharedMemory shared;
  Chunk* rows = shared.take<Chunk>(192);
  for (u32 i = threadIdx.x; i < 192; i += 32) store_shared(rows + i, Chunk{});
  sync_block();
  u32 r[4];
  for (u32 i = 0; i < 4; i++) r[i] = load(in<u32>(params, 0) + lane_id() * 4 + i);
  const Chunk* mine = rows + lane_id() % 8 * 3 + lane_id() / 8 * 24;
  stmatrix_x4(shared_address(mine), r);
  stmatrix_x4_trans(shared_address(mine + 96), r);
  sync_block();
  for (u32 i = threadIdx.x; i < 192; i += 32) store(out<Chunk>(params, 0) + i, load_shared(rows + i));
}
