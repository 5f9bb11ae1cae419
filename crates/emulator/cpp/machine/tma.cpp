#include "tma.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "async.h"
#include "box.h"
#include "counters.h"
#include "machine.h"
#include "mbarrier.h"
#include "race.h"
#include "runtime.h"
#include "shadow.h"

#define SITE __builtin_return_address(0)

namespace emu {

struct Store {
  uint64_t read = 0, write = 0;  // numbers of its two operations
  RaceDetector::AsyncOperation reader, writer;
};

struct ThreadStores {
  using Group = std::vector<std::shared_ptr<Store>>;
  Group open;
  std::deque<Group> committed;
  size_t read = 0;  // for how many of the oldest committed groups the thread has waited until they had read
};

namespace {

constexpr uint32_t offset_mask = 0xffffff;

struct Target {
  Cta* cta;
  char* to;
  uint64_t phase;  // the mbarrier's phase at the time of issue
};

struct Load {
  Box box;
  const char* name;
  uint32_t barrier;
  std::vector<Target> targets;
  std::vector<char> source;  // the source bytes at the time of issue
  RaceDetector::AsyncOperation operation;
};

void complete(const Load& load) {
  std::vector<char> now(load.source.size());
  load.box.gather_global(now.data());
  if (now != load.source) fail(Fault::in_flight, "%s: its source in global memory changed before it completed", load.name);
  for (const Target& target : load.targets) {
    load.box.for_each_chunk(target.to, [&](char* chunk, size_t at) {
      machine->shadow->complete_copy(chunk, now.data() + at, Box::chunk_bytes, true, load.name);
    });
    target.cta->copies_in_flight--;
    complete_bytes(*target.cta, load.barrier, static_cast<uint32_t>(now.size()), target.phase, load.operation, load.name);
  }
}

void check_address(const Box& box, uint32_t address, const char* name) {
  // The swizzle pattern repeats every 1024 bytes; without a swizzle TMA requires a multiple of 128.
  own_shared_pointer(address, box.map.box_bytes(), box.map.swizzle ? 1024 : 128, name);
}

ThreadStores& stores() {
  if (!self->stores) self->stores = std::make_shared<ThreadStores>();
  return *self->stores;
}

}  // namespace

void tma_prefetch(const void* map) { tensor_map(map, 0, "tma_prefetch"); }

void tma_load(uint32_t to, const void* map, uint32_t barrier, const int32_t* at, uint32_t rank, uint32_t ctas,
              const char* name, bool constant) {
  machine->jitter();
  if (!self->first_access && !constant) self->first_access = name;
  auto load = std::make_shared<Load>();
  load->box = Box(tensor_map(map, rank, name), at);
  load->name = name;
  load->barrier = barrier & offset_mask;
  check_address(load->box, to, name);
  own_shared_pointer(barrier, 8, 8, name);
  if (ctas == 0) ctas = 1u << self->cta->rank;
  const Cluster& cluster = *self->cta->cluster;
  if (ctas >> cluster.ctas.size()) {
    fail(Fault::out_of_bounds, "%s to CTAs 0x%x of a cluster of %zu", name, ctas, cluster.ctas.size());
  }
  const void* site = SITE;
  const uint32_t bytes = load->box.map.box_bytes();
  load->source.resize(bytes);
  load->operation = machine->race->begin_operation(self->clock);
  load->box.for_each_row([&](char* row, size_t row_bytes, size_t) {
    if (!machine->memory.is_global(row) || !machine->memory.accessible(row, row_bytes)) {
      fail(Fault::out_of_bounds, "%s: the tensor's rows do not lie in global memory", name);
    }
    machine->shadow->check_visible_to_proxy(row, row_bytes, name);
    machine->race->access(load->operation, row, row_bytes, RaceDetector::Kind::read, site);
    machine->counters->engine(row, static_cast<uint32_t>(row_bytes), false);
    machine->read.insert(machine->memory, row, row_bytes);
  });
  load->box.gather_global(load->source.data());
  for (uint32_t r = 0; r < cluster.ctas.size(); r++) {
    if (!(ctas >> r & 1)) continue;
    Cta& cta = *cluster.ctas[r];
    char* p = static_cast<char*>(shared_pointer(r << 24 | (to & offset_mask), bytes, name));
    shared_pointer(r << 24 | load->barrier, 8, name);
    MBarrier& b = mbarrier_of_copy(cta, load->barrier, name);
    machine->race->access(load->operation, b.at, 8, RaceDetector::Kind::atomic, site);
    load->box.for_each_chunk(p, [&](char* chunk, size_t) {
      machine->shadow->check_no_copy_in_flight(chunk, Box::chunk_bytes, name);
      machine->shadow->check_visible_to_proxy(chunk, Box::chunk_bytes, name);
      machine->race->access(load->operation, chunk, Box::chunk_bytes, RaceDetector::Kind::write, site);
      machine->shadow->start_copy(chunk, Box::chunk_bytes);
    });
    cta.copies_in_flight++;
    load->targets.push_back({&cta, p, b.phase});
  }
  machine->async->post([load] { complete(*load); });
}

void tma_store(const void* map, uint32_t from, const int32_t* at, uint32_t rank, const char* name) {
  machine->jitter();
  if (!self->first_access) self->first_access = name;
  const void* site = SITE;
  auto box = std::make_shared<Box>(tensor_map(map, rank, name), at);
  check_address(*box, from, name);
  const uint32_t bytes = box->map.box_bytes();
  char* p = static_cast<char*>(shared_pointer(from, bytes, name));
  auto store = std::make_shared<Store>();
  store->reader = machine->race->begin_operation(self->clock);
  auto source = std::make_shared<std::vector<char>>(bytes);
  box->for_each_chunk(p, [&](char* chunk, size_t to) {
    machine->shadow->check_no_copy_in_flight(chunk, Box::chunk_bytes, name);
    machine->shadow->check_visible_to_proxy(chunk, Box::chunk_bytes, name);
    machine->race->access(store->reader, chunk, Box::chunk_bytes, RaceDetector::Kind::read, site);
    memcpy(source->data() + to, chunk, Box::chunk_bytes);
  });
  store->writer = machine->race->begin_operation(self->clock);
  box->for_each_row([&](char* row, size_t row_bytes, size_t) {
    if (!machine->memory.is_global(row) || !machine->memory.accessible(row, row_bytes)) {
      fail(Fault::out_of_bounds, "%s: the tensor's rows do not lie in global memory", name);
    }
    machine->race->access(store->writer, row, row_bytes, RaceDetector::Kind::write, site);
    machine->written.insert(machine->memory, row, row_bytes);
    machine->counters->engine(row, static_cast<uint32_t>(row_bytes), true);
    memset(row, 0xff, row_bytes);
  });
  Cta* cta = self->cta;
  cta->copies_in_flight++;
  store->read = machine->async->post([=] {
    box->for_each_chunk(p, [&](char* chunk, size_t to) {
      if (memcmp(source->data() + to, chunk, Box::chunk_bytes) != 0) {
        fail(Fault::in_flight, "%s: its source in shared memory was overwritten before it was read", name);
      }
    });
    cta->copies_in_flight--;
  });
  store->write = machine->async->post([=] {
    machine->async->finish(store->read);
    box->for_each_row([&](char* row, size_t row_bytes, size_t at) { memcpy(row, source->data() + at, row_bytes); });
    machine->events++;
  });
  stores().open.push_back(store);
}

void bulk_commit() {
  ThreadStores& mine = stores();
  mine.committed.push_back(std::move(mine.open));
  mine.open.clear();
}

void bulk_wait(uint32_t groups, bool read_only) {
  ThreadStores& mine = stores();
  const size_t due = mine.committed.size() > groups ? mine.committed.size() - groups : 0;
  if (due > (read_only ? mine.read : 0)) run_others_first(read_only ? "bulk_wait_read" : "bulk_wait");
  for (size_t i = 0; i < due; i++) {
    for (const auto& store : mine.committed[i]) {
      machine->async->finish(store->read);
      machine->race->join(&self, 1, store->reader);
      if (read_only) continue;
      machine->async->finish(store->write);
      machine->race->join(&self, 1, store->writer);
    }
  }
  if (read_only) {
    mine.read = std::max(mine.read, due);
  } else {
    mine.committed.erase(mine.committed.begin(), mine.committed.begin() + static_cast<ptrdiff_t>(due));
    mine.read -= std::min(mine.read, due);
  }
}

void fence_proxy_async(bool shared) {
  machine->race->note_proxy_fence(self->clock, shared);
  if (!shared) return;
  machine->shadow->publish_to_proxy(*self->cta);
  publish_initialised_mbarriers();
}

void check_stores_at_exit(const Thread& thread) {
  if (!thread.stores) return;
  const ThreadStores& mine = *thread.stores;
  bool unread = !mine.open.empty();
  for (size_t i = mine.read; i < mine.committed.size(); i++) unread |= !mine.committed[i].empty();
  if (unread) fail(Fault::in_flight, "a thread exits without having waited until its bulk stores have read shared memory");
}

}  // namespace emu
