#include "registers.h"

#include <algorithm>
#include <vector>

#include "machine.h"
#include "synchronise.h"

namespace emu {

/// A CTA starts with as many registers a thread as its launch bounds allow, and never gets more in all.
struct Registers {
  uint32_t free = 0;                 // given up, in registers a thread of a warp
  std::vector<uint32_t> of_warp;
  std::vector<bool> asked;           // whether the warp has called either function
  std::vector<Thread*> waiting;
};

namespace {

constexpr uint32_t registers_of_sm = 64 << 10;
constexpr uint32_t most_registers = 255;

Registers& registers() {
  auto& all = self->cta->registers;
  if (!all) {
    all = std::make_shared<Registers>();
    const uint32_t bound = machine->kernel().max_threads;
    const uint32_t start = std::min(registers_of_sm / bound, most_registers) / 8 * 8;
    all->of_warp.assign(self->cta->warps.size(), start);
    all->asked.assign(self->cta->warps.size(), false);
  }
  return *all;
}

uint32_t warp_index() { return self->rank / 32; }

void converge(const char* name) {
  if (self->cta->threads.size() % 128) fail(Fault::collective, "%s in a CTA that is not made of warpgroups", name);
  warp_instruction(0xffffffff, name, [](const Rendezvous&) {}, nullptr);
}

// Who asks for more than there is waits for others to give up theirs, but not if all have spoken.
void refuse_if_hopeless(const Registers& all, uint32_t more) {
  if (more <= all.free || std::find(all.asked.begin(), all.asked.end(), false) != all.asked.end()) return;
  if (all.waiting.empty()) {
    fail(Fault::resources, "increase_registers: %u more a thread, and the CTA has %u left", more, all.free);
  }
}

}  // namespace

void decrease_registers(uint32_t to) {
  converge("decrease_registers");
  Registers& all = registers();
  uint32_t& mine = all.of_warp[warp_index()];
  all.asked[warp_index()] = true;
  if (self->lane != 0) return;
  if (to > mine) fail(Fault::resources, "decrease_registers to %u, from %u", to, mine);
  all.free += mine - to;
  mine = to;
  std::vector<Thread*> waiting;
  waiting.swap(all.waiting);
  for (Thread* thread : waiting) machine->wake(thread);
}

void increase_registers(uint32_t to) {
  converge("increase_registers");
  Registers& all = registers();
  all.asked[warp_index()] = true;
  if (self->lane == 0) {
    uint32_t& mine = all.of_warp[warp_index()];
    if (to < mine) fail(Fault::resources, "increase_registers to %u, from %u", to, mine);
    while (to - mine > all.free) {
      refuse_if_hopeless(all, to - mine);
      all.waiting.push_back(self);
      machine->block("increase_registers", to);
    }
    all.free -= to - mine;
    mine = to;
  }
  converge("increase_registers");
}

}  // namespace emu
