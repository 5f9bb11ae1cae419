// Accesses of a CTA to the shared memory of the other CTA of its cluster.
#include <gpu/cluster.h>
#include <gpu/mbarrier.h>
#include <gpu/tma.h>
#include <gpu/wgmma.h>
#include <misuse.h>

MISUSE(cluster_arrive_twice) {
  cluster_arrive();
  cluster_arrive();
}
MISUSE(cluster_wait_alone) { cluster_wait(); }
MISUSE(cluster_exit_between) { cluster_arrive(); }
MISUSE(cluster_rank_not_there) { map_shared(shared_address(SharedMemory().take<u32>(1)), 2); }
MISUSE(cluster_mapped_twice) {
  const u32 own = shared_address(SharedMemory().take<u32>(1));
  if (cluster_rank() == 1) map_shared(map_shared(own, 0), 1);
}
MISUSE(cluster_load_misaligned) { load_cluster<u32>(shared_address(SharedMemory().take<u32>(2)) + 2); }
MISUSE(cluster_store_misaligned) { store_cluster(shared_address(SharedMemory().take<u32>(2)) + 1, 1u); }
MISUSE(cluster_load_outside) {
  const u32 own = shared_address(SharedMemory().take<u32>(4));
  cluster_sync();
  load_cluster<u32>(map_shared(own, 1) + 16);
  cluster_sync();
}
// The other CTA has started, but nothing that this CTA has synchronised with shows it: a relaxed read orders nothing.
MISUSE(cluster_store_early) {
  const u32 own = shared_address(SharedMemory().take<u32>(1));
  if (threadIdx.x != 0) return;
  store_relaxed(words_out(params) + cluster_rank(), 7u);
  while (load_relaxed(words_out(params) + (cluster_rank() ^ 1)) != 7) back_off();
  store_cluster(map_shared(own, cluster_rank() ^ 1), 5u);
}
// The other CTA may have exited, after which its shared memory does not exist any more.
MISUSE(cluster_exit_early) {
  u32* word = SharedMemory().take<u32>(1);
  if (threadIdx.x == 0) *word = 5;
  cluster_sync();
  if (cluster_rank() == 0 && threadIdx.x == 0) load_cluster<u32>(map_shared(shared_address(word), 1));
}
MISUSE(cluster_load_unordered) {
  u32* word = SharedMemory().take<u32>(1);
  if (threadIdx.x == 0) *word = 4;
  cluster_sync();
  if (threadIdx.x == 0) *word = 5;
  if (threadIdx.x == 0) load_cluster<u32>(map_shared(shared_address(word), cluster_rank() ^ 1));
  cluster_sync();
}
MISUSE(cluster_instruction_of_another_cta) {
  const u32 own = shared_address(SharedMemory().take<u64>(1));
  cluster_sync();
  if (threadIdx.x == 0) mbarrier_init(map_shared(own, cluster_rank() ^ 1), 1);
}
MISUSE(cluster_arrival_misaligned) {
  const u32 own = shared_address(SharedMemory().take<u64>(2));
  cluster_sync();
  mbarrier_arrive_cluster(map_shared(own, 0) + 4);
}
MISUSE(cluster_multicast_beyond) {
  SharedMemory shared;
  u8* box = shared.take<u8, 1024>(1024);
  const u32 barrier = shared_address(shared.take<u64>(1));
  if (threadIdx.x == 0) tma_load_2d_multicast(shared_address(box), &params.maps[0], barrier, 0, 0, 5);
}
MISUSE(cluster_descriptor_of_another_cta) {
  const u32 own = shared_address(SharedMemory().take<u8, 1024>(1024));
  cluster_sync();
  wgmma_descriptor(map_shared(own, cluster_rank() ^ 1), 0, 1024);
}
