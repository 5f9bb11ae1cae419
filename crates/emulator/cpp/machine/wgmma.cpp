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

constexpr uint32_t warpgroup_threads = 128;
constexpr uint32_t rows = 64;      // M of every wgmma
constexpr uint32_t k_values = 16;  // K of every wgmma on 16-bit types

/// The 64 × N accumulators of MMAs that have not been waited for. The registers of the threads are NaN meanwhile.
struct Accumulators {
  float* registers[warpgroup_threads];
  uint32_t columns;
  std::vector<float> values;  // [64, N]
  uint32_t products = 0;      // MMAs that have not been waited for

  /// Calls f(register, its value in the matrix, thread) for every accumulator.
  template <class F>
  void for_each(F&& f) {
    for (uint32_t t = 0; t < warpgroup_threads; t++) {
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
  std::vector<uint16_t> a_data, b_data;  // the operands at the time of issue
  const uint32_t* a_registers[warpgroup_threads] = {};
  uint32_t a_values[warpgroup_threads][4] = {};
  bool computed = false;
  RaceDetector::AsyncOperation operation;
};

}  // namespace

struct Warpgroup {
  // The instruction that waits for threads of the warpgroup.
  const char* name = nullptr;
  uint32_t arrived = 0;
  Thread* thread[warpgroup_threads] = {};
  void* argument[warpgroup_threads] = {};

  bool fenced[warpgroup_threads] = {};  // whether the thread has called wgmma_fence since its last wgmma_wait
  std::vector<std::shared_ptr<Product>> open;
  std::deque<std::vector<std::shared_ptr<Product>>> committed;
  std::vector<std::shared_ptr<Accumulators>> in_use, released;
};

namespace {

Warpgroup& warpgroup_of(const Thread& thread) {
  Cta& cta = *thread.cta;
  if (cta.warpgroups.empty()) cta.warpgroups.resize((cta.threads.size() + warpgroup_threads - 1) / warpgroup_threads);
  auto& group = cta.warpgroups[thread.rank / warpgroup_threads];
  if (!group) group = std::make_shared<Warpgroup>();
  return *group;
}

// Waits until all 128 threads have arrived at the same instruction, which the last one carries out for all.
void warpgroup_instruction(const char* name, void (*function)(Warpgroup&), void* argument) {
  Warpgroup& group = warpgroup_of(*self);
  const Cta& cta = *self->cta;
  const uint32_t first = self->rank / warpgroup_threads * warpgroup_threads;
  for (uint32_t t = first; t < first + warpgroup_threads; t++) {
    if (t >= cta.threads.size() || cta.threads[t]->done) {
      fail(Fault::collective, "%s: thread %u of the warpgroup has exited or does not exist", name, t);
    }
  }
  if (group.arrived == 0) group.name = name;
  if (group.name != name) {
    fail(Fault::collective, "threads of one warpgroup are at different instructions, %s and %s", name, group.name);
  }
  const uint32_t me = self->rank % warpgroup_threads;
  group.thread[me] = self;
  group.argument[me] = argument;
  if (++group.arrived != warpgroup_threads) {
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
  std::vector<float> a(rows * k_values), b(k_values * in.columns);
  product.b.widen_to(b.data(), 1, in.columns, product.b_data, in.is_bf16);
  if (in.a_in_registers) {
    for (uint32_t t = 0; t < warpgroup_threads; t++) {
      if (memcmp(product.a_registers[t], product.a_values[t], sizeof product.a_values[t]) != 0) {
        fail(Fault::in_flight, "wgmma: registers of A were overwritten in thread %u before the product completed", t);
      }
      for (uint32_t i = 0; i < 4; i++) {
        float* to = &a[(t / 32 * 16 + t % 32 / 4 + 8 * (i & 1)) * k_values + t % 4 * 2 + 8 * (i >> 1)];
        to[0] = widen(static_cast<uint16_t>(product.a_values[t][i]), in.is_bf16);
        to[1] = widen(static_cast<uint16_t>(product.a_values[t][i] >> 16), in.is_bf16);
      }
    }
  } else {
    product.a.widen_to(a.data(), k_values, 1, product.a_data, in.is_bf16);
  }
  std::vector<float>& d = product.d->values;
  if (!in.accumulate) std::fill(d.begin(), d.end(), 0.0f);
  multiply_add(d.data(), a.data(), b.data(), rows, static_cast<int>(in.columns), k_values);
  product.computed = true;
}

std::shared_ptr<Accumulators> claim_accumulators(Warpgroup& group, uint32_t columns) {
  float* const first = static_cast<Argument*>(group.argument[0])->d;
  auto is_same = [&](const std::shared_ptr<Accumulators>& known) {
    if (known->registers[0] != first || known->columns != columns) return false;
    for (uint32_t t = 0; t < warpgroup_threads; t++) {
      if (known->registers[t] != static_cast<Argument*>(group.argument[t])->d) return false;
    }
    return true;
  };
  for (const auto& known : group.in_use) {
    if (is_same(known)) return known;
    for (uint32_t t = 0; t < warpgroup_threads; t++) {
      const float* d = static_cast<Argument*>(group.argument[t])->d;
      if (d < known->registers[t] + known->columns / 2 && known->registers[t] < d + columns / 2) {
        fail(Fault::in_flight, "wgmma: accumulators overlap those of another product that has not been waited for");
      }
    }
  }
  // Accumulators that still hold what the last wait wrote need no wgmma_fence; others do.
  bool unchanged = false;
  auto before = std::find_if(group.released.begin(), group.released.end(), is_same);
  if (before != group.released.end()) {
    unchanged = true;
    (*before)->for_each([&](float& d, float& value, uint32_t) { unchanged &= bits(d) == bits(value); });
    group.released.erase(before);
  }
  auto fresh = std::make_shared<Accumulators>();
  fresh->columns = columns;
  fresh->values.resize(rows * columns);
  for (uint32_t t = 0; t < warpgroup_threads; t++) {
    fresh->registers[t] = static_cast<Argument*>(group.argument[t])->d;
    if (!unchanged && !group.fenced[t]) {
      fail(Fault::proxy, "wgmma: no wgmma_fence since accumulators of thread %u may have been written", t);
    }
  }
  fresh->for_each([](float& d, float& value, uint32_t) {
    value = d;
    set_nan(d);
  });
  group.in_use.push_back(fresh);
  return fresh;
}

void read_operand(const SharedOperand& operand, Product& product, const void* site) {
  for (uint32_t i = 0; i < operand.chunks(); i++) {
    const char* chunk = operand.chunk(i);
    if (!machine->memory.accessible(chunk, SharedOperand::chunk_bytes)) {
      fail(Fault::out_of_bounds, "wgmma: a descriptor leads outside every array in shared memory");
    }
    machine->shadow->check_no_copy_in_flight(chunk, SharedOperand::chunk_bytes, "wgmma");
    machine->shadow->check_visible_to_proxy(chunk, SharedOperand::chunk_bytes, "wgmma");
    machine->race->access(product.operation, chunk, SharedOperand::chunk_bytes, RaceDetector::Kind::read, site);
  }
}

void issue(Warpgroup& group) {
  const auto& first = *static_cast<Argument*>(group.argument[0]);
  const WgmmaInstruction& in = first.instruction;
  auto product = std::make_shared<Product>();
  product->instruction = in;
  for (uint32_t t = 0; t < warpgroup_threads; t++) {
    const auto& mine = *static_cast<Argument*>(group.argument[t]);
    if (!(mine.instruction == in)) {
      fail(Fault::collective, "wgmma: thread %u of the warpgroup has other operands than thread 0", t);
    }
    if (!in.a_in_registers) continue;
    if (!group.fenced[t]) {
      fail(Fault::proxy, "wgmma: no wgmma_fence since registers of A in thread %u may have been written", t);
    }
    product->a_registers[t] = mine.a;
    memcpy(product->a_values[t], mine.a, sizeof product->a_values[t]);
  }
  product->operation = machine->race->begin_operation(group.thread, warpgroup_threads);
  if (!in.a_in_registers) {
    product->a = SharedOperand(in.a, in.a_mn_major, rows, "wgmma, A");
    read_operand(product->a, *product, first.site);
    product->a_data = product->a.read();
  }
  product->b = SharedOperand(in.b, in.b_mn_major, in.columns, "wgmma, B");
  read_operand(product->b, *product, first.site);
  product->b_data = product->b.read();
  product->d = claim_accumulators(group, in.columns);
  product->d->products++;
  machine->counters->totals.wgmma_instructions++;
  machine->counters->totals.mma_flops += uint64_t(2) * rows * in.columns * k_values;

  // MMAs complete in order: this one may complete at once only if all earlier ones have completed.
  bool earlier_completed = group.committed.empty();
  for (const auto& earlier : group.open) earlier_completed &= earlier->computed;
  const Completion completion = machine->config.completion;
  if (completion == Completion::eager || (completion == Completion::random && earlier_completed && machine->random() % 2)) {
    compute(*product);
  }
  group.open.push_back(std::move(product));
}

void release_accumulators(Warpgroup& group, const std::shared_ptr<Accumulators>& d) {
  d->for_each([](float& reg, float& value, uint32_t t) {
    if (bits(reg) != nan_bits) {
      fail(Fault::in_flight, "wgmma: accumulators of thread %u were written before wgmma_wait", t);
    }
    reg = value;
  });
  group.in_use.erase(std::find(group.in_use.begin(), group.in_use.end(), d));
  group.released.push_back(d);
  constexpr size_t max_remembered = 8;
  if (group.released.size() > max_remembered) group.released.erase(group.released.begin());
}

void complete(Warpgroup& group) {
  const uint32_t groups = *static_cast<uint32_t*>(group.argument[0]);
  for (void* argument : group.argument) {
    if (*static_cast<uint32_t*>(argument) != groups) fail(Fault::collective, "wgmma_wait for different numbers of groups");
  }
  while (group.committed.size() > groups) {
    for (const auto& product : group.committed.front()) {
      compute(*product);
      machine->race->join(group.thread, warpgroup_threads, product->operation);
      if (--product->d->products == 0) release_accumulators(group, product->d);
    }
    group.committed.pop_front();
  }
  std::fill(group.fenced, group.fenced + warpgroup_threads, false);
}

}  // namespace

void wgmma_fence() {
  warp_instruction(0xffffffff, "wgmma_fence", [](const WarpInstruction&) {}, nullptr);
  warpgroup_of(*self).fenced[self->rank % warpgroup_threads] = true;
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
  if (warpgroup_of(*self).committed.size() > groups) run_others_first("wgmma_wait");
  warpgroup_instruction("wgmma_wait", complete, &groups);
}

void wgmma_fence_operands(const float* d) {
  for (const auto& in_use : warpgroup_of(*self).in_use) {
    if (in_use->registers[self->rank % warpgroup_threads] == d) {
      fail(Fault::in_flight, "wgmma_fence_operands of accumulators that have not been waited for");
    }
  }
}

void check_wgmma_at_exit(const Thread& thread) {
  if (thread.cta->warpgroups.empty()) return;
  const auto& group = thread.cta->warpgroups[thread.rank / warpgroup_threads];
  if (group && !group->in_use.empty()) fail(Fault::in_flight, "a thread exits without having waited for its wgmma products");
}

}  // namespace emu
