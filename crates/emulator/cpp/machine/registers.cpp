#include "registers.h"

#include <algorithm>
#include <vector>

#include "machine.h"
#include "synchronise.h"

namespace emu {

/// A CTA starts with as many registers a thread as its launch bounds allow; the total never grows.
struct Registers {
  uint32_t free = 0;  // registers that warps have given up, a thread
  std::vector<uint32_t> of_warp;
  std::vector<Thread*> waiting;
};

namespace {

constexpr uint32_t registers_of_sm = 64 << 10;
constexpr uint32_t max_registers = 255;

Registers& registers() {
  auto& all = self->cta->registers;
  if (!all) {
    all = std::make_shared<Registers>();
    const uint32_t bound = machine->kernel().max_threads;
    const uint32_t start = std::min(registers_of_sm / bound, max_registers) / 8 * 8;
    all->of_warp.assign(self->cta->warps.size(), start);
  }
  return *all;
}

uint32_t warp_index() { return self->rank / 32; }

void converge_group(const char* name) {
  if (self->cta->threads.size() % 128) {
    fail(Fault::collective, "%s in a CTA whose threads are not whole warpgroups of 128", name);
  }
  warp_instruction(0xffffffff, name, [](const WarpInstruction&) {}, nullptr);
}

}  // namespace

void decrease_registers(uint32_t to) {
  converge_group("decrease_registers");
  Registers& all = registers();
  uint32_t& mine = all.of_warp[warp_index()];
  if (self->lane != 0) return;
  if (to > mine) fail(Fault::resources, "decrease_registers to %u, which is more than the %u that the warp has", to, mine);
  all.free += mine - to;
  mine = to;
  std::vector<Thread*> waiting;
  waiting.swap(all.waiting);
  for (Thread* thread : waiting) machine->wake(thread);
}

void increase_registers(uint32_t to) {
  converge_group("increase_registers");
  Registers& all = registers();
  if (self->lane == 0) {
    uint32_t& mine = all.of_warp[warp_index()];
    if (to < mine) fail(Fault::resources, "increase_registers to %u, which is less than the %u that the warp has", to, mine);
    // If no warp ever gives up enough registers, the launch ends with Fault::deadlock.
    while (to - mine > all.free) {
      all.waiting.push_back(self);
      machine->block("increase_registers", to);
    }
    all.free -= to - mine;
    mine = to;
  }
  converge_group("increase_registers");
}

}  // namespace emu
