// Clusters: CTAs that access each other's shared memory. A CTA may not exit before all accesses of other CTAs to its shared
// memory happen before the exit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emu {

struct Cluster;
struct Thread;

uint32_t cluster_rank();
uint32_t cluster_size();
/// barrier.cluster.arrive and .wait. The barrier counts all threads of the cluster that have not exited.
void cluster_arrive();
void cluster_wait();
/// The address, in the CTA of that rank, of an address of the calling CTA's shared memory.
uint32_t map_shared(uint32_t address, uint32_t rank);
/// `bytes` is a power of two, and the address a multiple of it.
void load_cluster(uint32_t address, void* to, uint32_t bytes);
void store_cluster(uint32_t address, uint32_t value);

void on_cluster_thread_exit(Cluster& cluster);
void check_cluster_at_exit(const Thread& thread);

}  // namespace emu
