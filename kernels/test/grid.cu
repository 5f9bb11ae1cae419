// gpu/grid.h: two launches in a row, the second of which adds to what the first wrote.
#include <gpu/grid.h>
#include <gpu/memory.h>
#include <test/test.h>

GPU_KERNEL(test_grid_dependent, LoraTest, 32, 1) {
  using namespace test;
  grid_dependency_wait();
  u32* mine = out<u32>(params, 0) + thread_of_grid();
  const u32 before = load(mine);
  grid_dependency_launch();
  store(mine, before + params.n[0]);
}
