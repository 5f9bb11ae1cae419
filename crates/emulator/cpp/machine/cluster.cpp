#include "cluster.h"

#include <cstring>
#include <utility>

#include "machine.h"
#include "race.h"
#include "runtime.h"
#include "shadow.h"
#include "synchronise.h"

#define SITE __builtin_return_address(0)

namespace emu {

namespace {

// The object that stands for a phase of the cluster's barrier in the race detector.
const void* phase_key(const Cluster& cluster, uint64_t phase) {
  return reinterpret_cast<const char*>(&cluster.phase) + phase % 2;
}

void complete(Cluster& cluster) {
  cluster.arrived = 0;
  cluster.phase++;
  machine->events++;
  // The new phase has the same key as the phase two before it.
  machine->race->forget(phase_key(cluster, cluster.phase));
  std::vector<Thread*> waiting;
  waiting.swap(cluster.waiting);
  for (Thread* thread : waiting) machine->wake(thread);
}

// The instructions are `.aligned`: all live lanes of the warp must be at the same instruction.
void converge(const char* name) {
  warp_instruction(self->warp->live, name, [](const WarpInstruction&) {}, nullptr);
}

}  // namespace

uint32_t cluster_rank() { return self->cta->rank; }
uint32_t cluster_size() { return static_cast<uint32_t>(self->cta->cluster->ctas.size()); }

void cluster_arrive() {
  converge("cluster_arrive");
  Cluster& cluster = *self->cta->cluster;
  if (self->cluster_arrived) fail(Fault::barrier, "cluster_arrive twice without cluster_wait between");
  self->cluster_arrived = true;
  self->cluster_phase = cluster.phase;
  // An earlier cluster may have been at the same address.
  if (cluster.phase == 0 && cluster.arrived == 0) machine->race->forget(phase_key(cluster, 0));
  machine->race->release(self->clock, phase_key(cluster, cluster.phase));
  cluster.arrived++;
  if (cluster.arrived == cluster.live) complete(cluster);
}

void cluster_wait() {
  converge("cluster_wait");
  Cluster& cluster = *self->cta->cluster;
  if (!self->cluster_arrived) fail(Fault::barrier, "cluster_wait without cluster_arrive before");
  if (cluster.phase == self->cluster_phase) {
    cluster.waiting.push_back(self);
    machine->block("cluster_wait");
  }
  machine->race->acquire(self->clock, phase_key(cluster, self->cluster_phase));
  self->cluster_arrived = false;
}

void on_cluster_thread_exit(Cluster& cluster) {
  if (cluster.arrived != 0 && cluster.arrived == cluster.live) complete(cluster);
}

void check_cluster_at_exit(const Thread& thread) {
  if (thread.cluster_arrived) fail(Fault::barrier, "a thread exits between cluster_arrive and cluster_wait");
}

uint32_t map_shared(uint32_t address, uint32_t rank) {
  if (address >> 24 != self->cta->rank) {
    fail(Fault::out_of_bounds, "map_shared of shared address 0x%x, which is not the CTA's own", address);
  }
  if (rank >= self->cta->cluster->ctas.size()) {
    fail(Fault::out_of_bounds, "map_shared to rank %u of a cluster of %zu", rank, self->cta->cluster->ctas.size());
  }
  return (address & 0xffffff) | rank << 24;
}

void load_cluster(uint32_t address, void* to, uint32_t bytes) {
  if (address % bytes) fail(Fault::misaligned, "load_cluster at shared address 0x%x", address);
  machine->jitter();
  const void* p = shared_pointer(address, bytes, "load_cluster");
  machine->shadow->check_no_copy_in_flight(p, bytes, "load_cluster");
  machine->race->access(self->clock, p, bytes, RaceDetector::Kind::read, SITE);
  memcpy(to, p, bytes);
}

void store_cluster(uint32_t address, uint32_t value) {
  if (address % 4) fail(Fault::misaligned, "store_cluster at shared address 0x%x", address);
  machine->jitter();
  void* p = shared_pointer(address, 4, "store_cluster");
  machine->shadow->check_no_copy_in_flight(p, 4, "store_cluster");
  machine->race->access(self->clock, p, 4, RaceDetector::Kind::write, SITE);
  memcpy(p, &value, 4);
}

}  // namespace emu
