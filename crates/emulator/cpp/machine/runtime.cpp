#include "runtime.h"

#include <cstring>

#include "counters.h"
#include "machine.h"
#include "race.h"
#include "shadow.h"
#include "synchronise.h"

#define SITE __builtin_return_address(0)

namespace emu {

namespace {

ThreadIndex index(const Index3& i) { return {i.x, i.y, i.z}; }

void check(const void* p, uint32_t bytes, bool global, const char* name) {
  Memory& memory = machine->memory;
  if (reinterpret_cast<uintptr_t>(p) % bytes) fail(Fault::misaligned, "%s of %u bytes at %p", name, bytes, p);
  if (!(global ? memory.is_global(p) : memory.is_shared(p)) || !memory.accessible(p, bytes)) {
    fail(Fault::out_of_bounds, "%s of %u bytes at %p, outside every allocation of %s memory", name, bytes, p,
         global ? "global" : "shared");
  }
}

// Records an access to global memory that is not a read of a weight. Before grid_dependency_wait, such an access could read
// values that the preceding launch has yet to write, or overwrite what it has yet to read.
void note_global_access(const char* name) {
  if (!self->first_access) self->first_access = name;
}

bool acquires(Order order) { return order == Order::acquire || order == Order::acquire_release; }
bool releases(Order order) { return order == Order::release || order == Order::acquire_release; }

uint64_t read_word(const void* p, uint32_t bytes) {
  uint64_t value = 0;
  memcpy(&value, p, bytes);
  return value;
}

}  // namespace

ThreadIndex thread_index() { return index(self->index); }
ThreadIndex block_index() { return index(self->cta->index); }
ThreadIndex block_size() { return {machine->shape.threads, 1, 1}; }
ThreadIndex grid_size() { return index(machine->shape.grid); }
uint32_t lane() { return self->lane; }

void load_global(void* to, const void* from, uint32_t bytes, Cache cache, const char* name, bool constant) {
  check(from, bytes, true, name);
  if (cache != Cache::once || !constant) note_global_access(name);
  machine->read.insert(machine->memory, from, bytes);
  if (constant) machine->read_as_constant.insert(machine->memory, from, bytes);
  machine->counters->global(cache == Cache::once ? Access::once : Access::load, from, bytes, SITE);
  machine->race->access(self->clock, from, bytes, RaceDetector::Kind::read, SITE);
  memcpy(to, from, bytes);
}

void store_global(void* to, const void* from, uint32_t bytes, const char* name) {
  check(to, bytes, true, name);
  note_global_access(name);
  machine->counters->global(Access::store, to, bytes, SITE);
  machine->race->access(self->clock, to, bytes, RaceDetector::Kind::write, SITE);
  machine->written.insert(machine->memory, to, bytes);
  memcpy(to, from, bytes);
  machine->events++;
}

void load_shared(void* to, const void* from, uint32_t bytes, const char* name) {
  check(from, bytes, false, name);
  machine->shadow->check_no_copy_in_flight(from, bytes, name);
  machine->counters->shared(from, bytes, false, SITE);
  machine->race->access(self->clock, from, bytes, RaceDetector::Kind::read, SITE);
  memcpy(to, from, bytes);
}

void store_shared(void* to, const void* from, uint32_t bytes, const char* name) {
  check(to, bytes, false, name);
  machine->shadow->check_no_copy_in_flight(to, bytes, name);
  machine->counters->shared(to, bytes, true, SITE);
  machine->race->access(self->clock, to, bytes, RaceDetector::Kind::write, SITE);
  memcpy(to, from, bytes);
}

uint64_t load_strong(const void* from, uint32_t bytes, Order order, const char* name) {
  check(from, bytes, true, name);
  note_global_access(name);
  uint64_t value = read_word(from, bytes);
  // A thread that reads the same value from the same address twice in a row spins: only another thread can end its loop.
  if (self->polled == from && self->polled_value == value) {
    machine->park_spinner();
    value = read_word(from, bytes);
  } else {
    machine->jitter();
    value = read_word(from, bytes);
  }
  self->polled = from;
  self->polled_value = value;
  machine->read.insert(machine->memory, from, bytes);
  machine->counters->global(Access::atomic, from, bytes, SITE);
  machine->race->access(self->clock, from, bytes, RaceDetector::Kind::atomic, SITE);
  if (acquires(order)) machine->race->acquire(self->clock, from);
  return value;
}

void store_strong(void* to, uint64_t value, uint32_t bytes, Order order, const char* name) {
  check(to, bytes, true, name);
  note_global_access(name);
  machine->jitter();
  machine->counters->global(Access::atomic, to, bytes, SITE);
  machine->race->access(self->clock, to, bytes, RaceDetector::Kind::atomic, SITE);
  machine->written.insert(machine->memory, to, bytes);
  // A store begins a new release sequence: what earlier releases of this word published is dropped.
  machine->race->forget(to);
  if (releases(order)) machine->race->release(self->clock, to);
  memcpy(to, &value, bytes);
  machine->events++;
}

uint64_t update_strong(void* at, uint64_t operand, uint32_t bytes, Update update, Order order, const char* name) {
  check(at, bytes, true, name);
  note_global_access(name);
  machine->jitter();
  machine->counters->global(Access::atomic, at, bytes, SITE);
  machine->race->access(self->clock, at, bytes, RaceDetector::Kind::atomic, SITE);
  if (acquires(order)) machine->race->acquire(self->clock, at);
  if (releases(order)) machine->race->release(self->clock, at);
  machine->updated.insert(machine->memory, at, bytes);
  machine->written.insert(machine->memory, at, bytes);
  uint64_t before = read_word(at, bytes);
  uint64_t after = update == Update::add ? before + operand : (before > operand ? before : operand);
  memcpy(at, &after, bytes);
  machine->events++;
  return before;
}

void fence_gpu() { machine->jitter(); }

void grid_dependency_wait() {
  if (self->first_access && !self->dependency_waited) {
    fail(Fault::race, "grid_dependency_wait after %s: the preceding launch may still have been running then",
         self->first_access);
  }
  if (!self->dependency_waited) machine->counters->totals.dependency_waits++;
  self->dependency_waited = true;
}

void restart_shared() { self->shared_taken = self->shared_offset = 0; }

void* take_shared(uint32_t bytes, uint32_t alignment) {
  Thread& thread = *self;
  Cta& cta = *thread.cta;
  auto round = [&](uint32_t at) { return (at + alignment - 1) / alignment * alignment; };
  if (alignment > Memory::shared_red_zone) {
    fail(Fault::resources, "shared memory aligned to %u bytes, more than the emulator's 1024", alignment);
  }
  uint32_t start = round(thread.shared_taken);
  if (start + bytes > cta.shared_bytes) {
    fail(Fault::resources, "the kernel takes %u bytes of shared memory, the launch gave %u", start + bytes,
         cta.shared_bytes);
  }
  // The offset differs from the GPU's by whole red zones, one before each array.
  uint32_t offset = thread.shared_offset + Memory::shared_red_zone + start;
  thread.shared_offset += Memory::shared_red_zone;
  thread.shared_taken = start + bytes;
  if (offset + bytes + Memory::shared_red_zone > Memory::slot_bytes) {
    fail(Fault::resources, "%u bytes of shared memory in so many arrays leave no room for the emulator's red zones",
         start + bytes);
  }
  char* p = cta.shared + offset;
  if (!machine->memory.accessible(p, bytes)) {
    machine->memory.open(p, bytes);
    memset(p, 0xff, bytes);
    cta.shared_arrays.push_back({offset, bytes});
  }
  return p;
}

uint32_t shared_window(const void* p) {
  for (const Cta* cta : self->cta->cluster->ctas) {
    size_t at = static_cast<size_t>(static_cast<const char*>(p) - cta->shared);
    if (at < Memory::slot_bytes) return cta->rank << 24 | static_cast<uint32_t>(at);
  }
  fail(Fault::out_of_bounds, "shared_address of %p, which is not in the cluster's shared memory", p);
}

void* shared_pointer(uint32_t address, uint32_t bytes, const char* name) {
  const auto& ctas = self->cta->cluster->ctas;
  uint32_t rank = address >> 24, at = address & 0xffffff;
  if (rank >= ctas.size() || at + bytes > Memory::slot_bytes ||
      !machine->memory.accessible(ctas[rank]->shared + at, bytes)) {
    fail(Fault::out_of_bounds, "%s of %u bytes at shared address 0x%x, outside every array in shared memory", name, bytes,
         address);
  }
  if (rank != self->cta->rank && !machine->race->knows_started(self->clock, *ctas[rank])) {
    fail(Fault::out_of_bounds, "%s at shared address 0x%x: CTA %u of the cluster is not known to have started", name,
         address, rank);
  }
  return ctas[rank]->shared + at;
}

void* own_shared_pointer(uint32_t address, uint32_t bytes, uint32_t alignment, const char* name) {
  if (address % alignment) {
    fail(Fault::misaligned, "%s at shared address 0x%x, which is not a multiple of %u", name, address, alignment);
  }
  if (address >> 24 != self->cta->rank) {
    fail(Fault::out_of_bounds, "%s at shared address 0x%x, which is not the CTA's own", name, address);
  }
  return shared_pointer(address, bytes, name);
}

void sync_warp(uint32_t members) {
  warp_instruction(
      members, "sync_warp",
      [](const WarpInstruction& lanes) {
        Thread* threads[32];
        size_t n = 0;
        for (Thread* thread : lanes.thread) {
          if (thread) threads[n++] = thread;
        }
        machine->race->barrier(threads, n, threads, n);
      },
      nullptr);
}

namespace {

struct ShuffleArgument {
  uint64_t value;
  uint32_t source;
};

struct BallotArgument {
  bool vote;
  uint32_t result;
};

}  // namespace

uint64_t shuffle(uint64_t value, uint32_t source, uint32_t members, const char* name) {
  ShuffleArgument argument{value, source};
  warp_instruction(
      members, name,
      [](const WarpInstruction& lanes) {
        uint64_t values[32];
        for (uint32_t lane = 0; lane < 32; lane++) {
          if (lanes.thread[lane]) values[lane] = static_cast<ShuffleArgument*>(lanes.argument[lane])->value;
        }
        for (uint32_t lane = 0; lane < 32; lane++) {
          if (!lanes.thread[lane]) continue;
          auto* mine = static_cast<ShuffleArgument*>(lanes.argument[lane]);
          if (!lanes.thread[mine->source]) {
            fail(Fault::collective, "%s: lane %u reads lane %u, which is not among members %08x", lanes.name, lane,
                 mine->source, lanes.members);
          }
          mine->value = values[mine->source];
        }
      },
      &argument);
  return argument.value;
}

uint32_t ballot(bool vote, uint32_t members, const char* name) {
  BallotArgument argument{vote, 0};
  warp_instruction(
      members, name,
      [](const WarpInstruction& lanes) {
        uint32_t votes = 0;
        for (uint32_t lane = 0; lane < 32; lane++) {
          if (lanes.thread[lane] && static_cast<BallotArgument*>(lanes.argument[lane])->vote) votes |= 1u << lane;
        }
        for (uint32_t lane = 0; lane < 32; lane++) {
          if (lanes.thread[lane]) static_cast<BallotArgument*>(lanes.argument[lane])->result = votes;
        }
      },
      &argument);
  return argument.result;
}

RegisterKernel::RegisterKernel(const char* name, KernelFunction run, uint32_t params_bytes, uint32_t max_threads) {
  add_kernel({name, run, params_bytes, max_threads});
}

}  // namespace emu
