// CTAs that reach each other's shared memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emu {

struct Cluster;
struct Thread;

uint32_t cluster_rank();
uint32_t cluster_size();
/// The two halves of the cluster's barrier, of all its threads that have not exited.
void cluster_arrive();
void cluster_wait();
/// The same place of the CTA's own shared memory in another CTA.
uint32_t map_shared(uint32_t address, uint32_t rank);
/// `bytes` is a power of two that the address is a multiple of.
void load_cluster(uint32_t address, void* to, uint32_t bytes);
void store_cluster(uint32_t address, uint32_t value);

void cluster_thread_left(Cluster& cluster);
void check_cluster_at_exit(const Thread& thread);

}  // namespace emu
