#include "wgmma.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "async.h"
#include "counters.h"
#include "machine.h"
#include "product.h"
#include "race.h"
#include "shadow.h"
#include "synchronise.h"

#define SITE __builtin_return_address(0)

namespace emu {

namespace {

constexpr uint32_t threads_of_group = 128;
constexpr uint32_t rows = 64;
constexpr uint32_t depth = 16;

/// The 64 x N accumulators that an MMA has taken from the registers of its threads.
struct Accumulators {
  float* registers[threads_of_group];
  uint32_t columns;
  std::vector<float> values;  // [64, N]
  uint32_t products = 0;      // MMAs that have not been waited for

  /// Calls f(register, its value in the matrix, thread) for every accumulator.
  template <class F>
  void for_each(F&& f) {
    for (uint32_t t = 0; t < threads_of_group; t++) {
      const uint32_t row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
      for (uint32_t i = 0; i < columns / 2; i++) {
        f(registers[t][i], values[(row + 8 * (i >> 1 & 1)) * columns + column + 8 * (i >> 2) + (i & 1)], t);
      }
    }
  }
};

struct Product {
  WgmmaInstruction instruction;
  std::shared_ptr<Accumulators> d;
  SharedOperand a, b;
  std::vector<uint16_t> a_data, b_data;  // as they were when the MMA was issued
  const uint32_t* a_registers[threads_of_group] = {};
  uint32_t a_values[threads_of_group][4] = {};
  bool computed = false;
  Race::Engine engine;
};

}  // namespace

struct Warpgroup {
  // The instruction that waits for threads of the warpgroup.
  const char* name = nullptr;
  uint32_t arrived = 0;
  Thread* thread[threads_of_group] = {};
  void* argument[threads_of_group] = {};

  bool fenced[threads_of_group] = {};  // whether wgmma_fence was called since registers could last be written
  std::vector<std::shared_ptr<Product>> open;
  std::deque<std::vector<std::shared_ptr<Product>>> committed;
  std::vector<std::shared_ptr<Accumulators>> taken, returned;
};

namespace {

Warpgroup& warpgroup_of(const Thread& thread) {
  Cta& cta = *thread.cta;
  if (cta.warpgroups.empty()) cta.warpgroups.resize((cta.threads.size() + threads_of_group - 1) / threads_of_group);
  auto& group = cta.warpgroups[thread.rank / threads_of_group];
  if (!group) group = std::make_shared<Warpgroup>();
  return *group;
}

// Waits until all 128 threads have arrived at the same instruction, which the last one carries out for all.
void warpgroup_instruction(const char* name, void (*function)(Warpgroup&), void* argument) {
  Warpgroup& group = warpgroup_of(*self);
  const Cta& cta = *self->cta;
  const uint32_t first = self->rank / threads_of_group * threads_of_group;
  for (uint32_t t = first; t < first + threads_of_group; t++) {
    if (t >= cta.threads.size() || cta.threads[t]->done) {
      fail(Fault::collective, "%s: thread %u of the warpgroup exited or never was", name, t);
    }
  }
  if (group.arrived == 0) group.name = name;
  if (group.name != name) {
    fail(Fault::collective, "threads of one warpgroup are at different instructions, %s and %s", name, group.name);
  }
  const uint32_t me = self->rank % threads_of_group;
  group.thread[me] = self;
  group.argument[me] = argument;
  if (++group.arrived != threads_of_group) {
    machine->block(name);
    return;
  }
  group.arrived = 0;
  function(group);
  for (Thread* thread : group.thread) {
    if (thread != self) machine->wake(thread);
  }
}

struct Argument {
  WgmmaInstruction instruction;
  float* d;
  const uint32_t* a;
  const void* site;
};

uint32_t bits(float value) {
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  return word;
}

const uint32_t nan_bits = 0xffffffff;

void set_nan(float& value) { memcpy(&value, &nan_bits, sizeof value); }

void compute(Product& product) {
  if (product.computed) return;
  const WgmmaInstruction& in = product.instruction;
  if (product.b.read() != product.b_data || (!in.a_in_registers && product.a.read() != product.a_data)) {
    fail(Fault::in_flight, "wgmma: an operand in shared memory was overwritten before the product completed");
  }
  std::vector<float> a(rows * depth), b(depth * in.columns);
  product.b.widen_to(b.data(), 1, in.columns, product.b_data, in.is_bf16);
  if (in.a_in_registers) {
    for (uint32_t t = 0; t < threads_of_group; t++) {
      if (memcmp(product.a_registers[t], product.a_values[t], sizeof product.a_values[t]) != 0) {
        fail(Fault::in_flight, "wgmma: registers of A were overwritten in thread %u before the product completed", t);
      }
      for (uint32_t i = 0; i < 4; i++) {
        float* to = &a[(t / 32 * 16 + t % 32 / 4 + 8 * (i & 1)) * depth + t % 4 * 2 + 8 * (i >> 1)];
        to[0] = widen(static_cast<uint16_t>(product.a_values[t][i]), in.is_bf16);
        to[1] = widen(static_cast<uint16_t>(product.a_values[t][i] >> 16), in.is_bf16);
      }
    }
  } else {
    product.a.widen_to(a.data(), depth, 1, product.a_data, in.is_bf16);
  }
  std::vector<float>& d = product.d->values;
  if (!in.accumulate) std::fill(d.begin(), d.end(), 0.0f);
  multiply_add(d.data(), a.data(), b.data(), rows, static_cast<int>(in.columns), depth);
  product.computed = true;
}

std::shared_ptr<Accumulators> take(Warpgroup& group, uint32_t columns) {
  float* const first = static_cast<Argument*>(group.argument[0])->d;
  auto is_same = [&](const std::shared_ptr<Accumulators>& known) {
    if (known->registers[0] != first || known->columns != columns) return false;
    for (uint32_t t = 0; t < threads_of_group; t++) {
      if (known->registers[t] != static_cast<Argument*>(group.argument[t])->d) return false;
    }
    return true;
  };
  for (const auto& known : group.taken) {
    if (is_same(known)) return known;
    for (uint32_t t = 0; t < threads_of_group; t++) {
      const float* d = static_cast<Argument*>(group.argument[t])->d;
      if (d < known->registers[t] + known->columns / 2 && known->registers[t] < d + columns / 2) {
        fail(Fault::in_flight, "wgmma: accumulators overlap those of another product that has not been waited for");
      }
    }
  }
  // Registers that still hold what the last wait left need no fence; others do.
  bool unchanged = false;
  auto before = std::find_if(group.returned.begin(), group.returned.end(), is_same);
  if (before != group.returned.end()) {
    unchanged = true;
    (*before)->for_each([&](float& d, float& value, uint32_t) { unchanged &= bits(d) == bits(value); });
    group.returned.erase(before);
  }
  auto fresh = std::make_shared<Accumulators>();
  fresh->columns = columns;
  fresh->values.resize(rows * columns);
  for (uint32_t t = 0; t < threads_of_group; t++) {
    fresh->registers[t] = static_cast<Argument*>(group.argument[t])->d;
    if (!unchanged && !group.fenced[t]) {
      fail(Fault::proxy, "wgmma: accumulators of thread %u without wgmma_fence since they may have been written", t);
    }
  }
  fresh->for_each([](float& d, float& value, uint32_t) {
    value = d;
    set_nan(d);
  });
  group.taken.push_back(fresh);
  return fresh;
}

void read_operand(const SharedOperand& operand, Product& product, const void* site) {
  for (uint32_t i = 0; i < operand.chunks(); i++) {
    const char* chunk = operand.chunk(i);
    if (!machine->memory.accessible(chunk, SharedOperand::chunk_bytes)) {
      fail(Fault::out_of_bounds, "wgmma: a descriptor leads outside every piece of shared memory taken");
    }
    machine->shadow->expect_landed(chunk, SharedOperand::chunk_bytes, "wgmma");
    machine->shadow->expect_published(chunk, SharedOperand::chunk_bytes, "wgmma");
    machine->race->access(product.engine, chunk, SharedOperand::chunk_bytes, Race::Kind::read, site);
  }
}

void issue(Warpgroup& group) {
  const auto& first = *static_cast<Argument*>(group.argument[0]);
  const WgmmaInstruction& in = first.instruction;
  auto product = std::make_shared<Product>();
  product->instruction = in;
  for (uint32_t t = 0; t < threads_of_group; t++) {
    const auto& mine = *static_cast<Argument*>(group.argument[t]);
    if (!(mine.instruction == in)) {
      fail(Fault::collective, "wgmma: thread %u of the warpgroup has other operands than thread 0", t);
    }
    if (!in.a_in_registers) continue;
    if (!group.fenced[t]) {
      fail(Fault::proxy, "wgmma: A in registers of thread %u without wgmma_fence since they may have been written", t);
    }
    product->a_registers[t] = mine.a;
    memcpy(product->a_values[t], mine.a, sizeof product->a_values[t]);
  }
  product->engine = machine->race->begin_engine(group.thread, threads_of_group);
  if (!in.a_in_registers) {
    product->a = SharedOperand(in.a, in.a_mn_major, rows, "wgmma, A");
    read_operand(product->a, *product, first.site);
    product->a_data = product->a.read();
  }
  product->b = SharedOperand(in.b, in.b_mn_major, in.columns, "wgmma, B");
  read_operand(product->b, *product, first.site);
  product->b_data = product->b.read();
  product->d = take(group, in.columns);
  product->d->products++;
  machine->counters->totals.wgmma_instructions++;
  machine->counters->totals.mma_flops += uint64_t(2) * rows * in.columns * depth;

  // MMAs complete in order: one may complete at once only if all earlier ones have.
  bool next = group.committed.empty();
  for (const auto& earlier : group.open) next &= earlier->computed;
  const Completion completion = machine->config.completion;
  if (completion == Completion::eager || (completion == Completion::random && next && machine->random() % 2)) {
    compute(*product);
  }
  group.open.push_back(std::move(product));
}

void give_back(Warpgroup& group, const std::shared_ptr<Accumulators>& d) {
  d->for_each([](float& reg, float& value, uint32_t t) {
    if (bits(reg) != nan_bits) {
      fail(Fault::in_flight, "wgmma: accumulators of thread %u were written before wgmma_wait", t);
    }
    reg = value;
  });
  group.taken.erase(std::find(group.taken.begin(), group.taken.end(), d));
  group.returned.push_back(d);
  constexpr size_t most_remembered = 8;
  if (group.returned.size() > most_remembered) group.returned.erase(group.returned.begin());
}

void complete(Warpgroup& group) {
  const uint32_t groups = *static_cast<uint32_t*>(group.argument[0]);
  for (void* argument : group.argument) {
    if (*static_cast<uint32_t*>(argument) != groups) fail(Fault::collective, "wgmma_wait for different numbers of groups");
  }
  while (group.committed.size() > groups) {
    for (const auto& product : group.committed.front()) {
      compute(*product);
      machine->race->join(group.thread, threads_of_group, product->engine);
      if (--product->d->products == 0) give_back(group, product->d);
    }
    group.committed.pop_front();
  }
  std::fill(group.fenced, group.fenced + threads_of_group, false);
}

}  // namespace

void wgmma_fence() {
  warp_instruction(0xffffffff, "wgmma_fence", [](const Rendezvous&) {}, nullptr);
  warpgroup_of(*self).fenced[self->rank % threads_of_group] = true;
}

void wgmma(const WgmmaInstruction& instruction, float* d, const uint32_t* a) {
  Argument argument{instruction, d, a, SITE};
  warpgroup_instruction("wgmma", issue, &argument);
}

void wgmma_commit() {
  warpgroup_instruction(
      "wgmma_commit",
      [](Warpgroup& group) {
        group.committed.push_back(std::move(group.open));
        group.open.clear();
      },
      nullptr);
}

void wgmma_wait(uint32_t groups) {
  if (warpgroup_of(*self).committed.size() > groups) settle("wgmma_wait");
  warpgroup_instruction("wgmma_wait", complete, &groups);
}

void wgmma_fence_operands(const float* d) {
  for (const auto& taken : warpgroup_of(*self).taken) {
    if (taken->registers[self->rank % threads_of_group] == d) {
      fail(Fault::in_flight, "wgmma_fence_operands of accumulators that have not been waited for");
    }
  }
}

void check_wgmma_at_exit(const Thread& thread) {
  if (thread.cta->warpgroups.empty()) return;
  const auto& group = thread.cta->warpgroups[thread.rank / threads_of_group];
  if (group && !group->taken.empty()) fail(Fault::in_flight, "a thread exits without having waited for its wgmma products");
}

}  // namespace emu
