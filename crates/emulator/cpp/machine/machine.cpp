#include "machine.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>

#include "async.h"
#include "counters.h"
#include "crash.h"
#include "mbarrier.h"
#include "race.h"
#include "shadow.h"
#include "synchronise.h"

namespace emu {

thread_local Machine* machine = nullptr;
thread_local Thread* self = nullptr;

namespace {
std::mutex kernels_lock;
std::deque<KernelInfo> kernel_table;
}  // namespace

uint32_t kernel_count() {
  std::lock_guard<std::mutex> hold(kernels_lock);
  return static_cast<uint32_t>(kernel_table.size());
}

const KernelInfo& kernel_at(uint32_t index) {
  std::lock_guard<std::mutex> hold(kernels_lock);
  return kernel_table[index];
}

void add_kernel(const KernelInfo& kernel) {
  std::lock_guard<std::mutex> hold(kernels_lock);
  kernel_table.push_back(kernel);
}

const char* fault_name(Fault fault) {
  static const char* const names[] = {"none",       "out of bounds", "misaligned", "uninitialised", "race",
                                      "in flight",  "proxy",         "barrier",    "collective",    "descriptor",
                                      "operand",    "deadlock",      "livelock",   "resources",     "crash"};
  return names[static_cast<int>(fault)];
}

void fail(Fault fault, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  Machine& m = *machine;
  m.fault = fault;
  m.report = std::string(fault_name(fault)) + ": " + text;
  if (self) {
    const Index3& block = self->cta->index;
    char where[160];
    snprintf(where, sizeof where, "\n  by block (%u,%u,%u) thread %u (warp %u, lane %u)", block.x, block.y, block.z,
             self->rank, self->rank / 32, self->lane);
    m.report += where;
  }
  m.report += m.describe_threads();
  m.abandon();
}

Machine::Machine()
    : race(std::make_unique<RaceDetector>(memory)),
      counters(std::make_unique<CounterState>(memory)),
      async(std::make_unique<AsyncState>()),
      shadow(std::make_unique<ShadowMemory>(memory)) {}

Machine::~Machine() = default;

uint64_t Machine::random() {
  rng_ ^= rng_ << 13;
  rng_ ^= rng_ >> 7;
  rng_ ^= rng_ << 17;
  return rng_;
}

bool Machine::in_params(const void* p, size_t bytes) const {
  size_t at = static_cast<size_t>(static_cast<const char*>(p) - static_cast<const char*>(params_));
  return at < kernel_->params_bytes && bytes <= kernel_->params_bytes - at;
}

std::string Machine::describe_threads() const {
  std::map<std::string, std::vector<const Thread*>> groups;
  for (const auto& cta : ctas) {
    for (const Thread* thread : cta->threads) {
      if (thread->done || thread == self) continue;
      char detail[32] = "";
      if (thread->waits_detail) snprintf(detail, sizeof detail, " 0x%llx", (unsigned long long)thread->waits_detail);
      groups["block " + std::to_string(cta->linear) + ": " + thread->waits + detail].push_back(thread);
    }
  }
  std::string text;
  size_t lines = 0;
  for (const auto& [what, threads] : groups) {
    if (++lines > 24) {
      text += "\n  ...";
      break;
    }
    text += "\n  " + what + ": " + std::to_string(threads.size()) + " threads, " + std::to_string(threads.front()->rank) +
            " to " + std::to_string(threads.back()->rank);
  }
  for (const auto& cta : ctas) text += describe_mbarriers(*cta);
  return text;
}

Thread* Machine::pick() {
  for (;;) {
    if (config.completion == Completion::random && !async->empty() && random() % 8 == 0) async->complete_one();
    if (!runnable_.empty()) {
      size_t at = 0;
      if (config.schedule == Schedule::last_in) at = runnable_.size() - 1;
      if (config.schedule == Schedule::random) at = pick_at_random();
      if (at != 0 && at != runnable_.size() - 1) std::swap(runnable_[at], runnable_.back()), at = runnable_.size() - 1;
      Thread* next = runnable_[at];
      at == 0 ? runnable_.pop_front() : runnable_.pop_back();
      return next;
    }
    if (async->complete_one()) continue;
    if (live_threads_ == 0) return nullptr;
    if (spinners_.empty()) fail(Fault::deadlock, "no thread can run: every thread waits for another");
    // When all other threads wait, the spinning threads poll once more. If no event has happened since, none will.
    idle_spins_ = events_at_last_spin_ == events ? idle_spins_ + 1 : 0;
    if (idle_spins_ > 2) fail(Fault::livelock, "every remaining thread spins on a value that no thread can change any more");
    events_at_last_spin_ = events;
    runnable_.insert(runnable_.end(), spinners_.begin(), spinners_.end());
    spinners_.clear();
  }
}

size_t Machine::pick_at_random() {
  // One CTA is favoured for a while, so that some CTAs run far ahead of others.
  if (burst_left_ == 0) {
    favoured_cta_ = static_cast<uint32_t>(random() % ctas.size());
    burst_left_ = 1u << random() % 16;
  }
  burst_left_--;
  size_t at = 0;
  for (int tries = 0; tries < 8; tries++) {
    at = random() % runnable_.size();
    if (favoured_cta_ < ctas.size() && runnable_[at]->cta == ctas[favoured_cta_].get()) break;
  }
  return at;
}

void Machine::run_next() {
  Thread* leaving = self;
  self = nullptr;  // so that a deadlock report names no thread as its cause
  Thread* next = pick();
  self = next;
  if (next && next == leaving) return;
  counters->totals.switches++;
  bool final = leaving && leaving->done;
  Fiber::switch_to(leaving ? leaving->fiber : launcher_, next ? next->fiber : launcher_, final);
}

void Machine::block(const char* why, uint64_t detail) {
  self->waits = why;
  self->waits_detail = detail;
  run_next();
  self->waits = "running";
  self->waits_detail = 0;
}

void Machine::wake(Thread* thread) {
  runnable_.push_back(thread);
  events++;
}

void Machine::yield(const char* why) {
  runnable_.push_back(self);
  block(why);
}

void Machine::park_spinner() {
  counters->totals.spins++;
  spinners_.push_back(self);
  block("spinning on", reinterpret_cast<uint64_t>(self->polled));
}

void Machine::jitter() {
  if (config.schedule == Schedule::random && random() % 4 == 0) yield("between two accesses");
}

void Machine::abandon() {
  self = nullptr;
  Fiber abandoned;
  Fiber::switch_to(abandoned, launcher_, true);
  __builtin_unreachable();
}

void thread_entry() {
  Fiber::started();
  Machine& m = *machine;
  m.kernel_->run(m.params_);
  m.finish_thread();
  __builtin_unreachable();
}

Thread* Machine::fresh_thread() {
  if (pool_.empty()) {
    all_threads_.push_back(std::make_unique<Thread>());
    pool_.push_back(all_threads_.back().get());
  }
  Thread* thread = pool_.back();
  pool_.pop_back();
  return thread;
}

void Machine::start_cluster(uint32_t first_cta, uint32_t slot) {
  clusters_.push_back(std::make_unique<Cluster>());
  Cluster* cluster = clusters_.back().get();
  for (uint32_t i = 0; i < shape.cluster; i++) {
    ctas.push_back(std::make_unique<Cta>());
    Cta* cta = ctas.back().get();
    cta->linear = first_cta + i;
    cta->index = {cta->linear % shape.grid.x, cta->linear / shape.grid.x % shape.grid.y,
                  cta->linear / shape.grid.x / shape.grid.y};
    cta->slot = slot * shape.cluster + i;
    cta->rank = i;
    cta->cluster = cluster;
    cta->live = shape.threads;
    cta->shared = memory.slot(cta->slot);
    cta->shared_bytes = shape.shared_bytes;
    cta->warps.resize((shape.threads + 31) / 32);
    cluster->ctas.push_back(cta);
    cluster->live += shape.threads;
    memory.close(cta->shared, Memory::slot_bytes);
    race->start_cta(*cta);
    shadow->start_cta(*cta);
    for (uint32_t rank = 0; rank < shape.threads; rank++) {
      Thread* thread = fresh_thread();
      thread->index = {rank, 0, 0};
      thread->rank = rank;
      thread->lane = rank % 32;
      thread->clock = cta->slot * shape.threads + rank;
      thread->cta = cta;
      thread->warp = &cta->warps[rank / 32];
      thread->waits = "not started";
      thread->waits_detail = 0;
      thread->done = false;
      thread->polled = nullptr;
      thread->first_access = nullptr;
      thread->dependency_waited = false;
      thread->shared_taken = thread->shared_offset = thread->vote_round = 0;
      thread->warp->lane[thread->lane] = thread;
      thread->warp->live |= 1u << thread->lane;
      thread->fiber.reset(thread_entry);
      race->start_thread(*thread);
      async->start_thread(*thread);
      cta->threads.push_back(thread);
      runnable_.push_back(thread);
    }
    live_threads_ += shape.threads;
  }
}

void Machine::start_ctas() {
  while (next_cluster_ < order_.size() && !free_slots_.empty()) {
    uint32_t slot = free_slots_.back();
    free_slots_.pop_back();
    start_cluster(order_[next_cluster_++] * shape.cluster, slot);
  }
}

void Machine::finish_thread() {
  Thread* thread = self;
  Cta* cta = thread->cta;
  async->finish_thread(*thread);
  counters->finish_thread(*thread);
  thread->done = true;
  thread->warp->live &= ~(1u << thread->lane);
  events++;
  live_threads_--;
  if (--cta->live == 0) async->finish_cta(*cta);
  if (--cta->cluster->live == 0) {
    retire(cta->cluster);
    start_ctas();
  } else {
    on_thread_exit(*cta);
  }
  run_next();
  __builtin_unreachable();
}

void Machine::retire(Cluster* cluster) {
  // The running thread still uses its stack, so the thread goes to the pool only when the next cluster retires.
  if (last_finished_) pool_.push_back(last_finished_);
  last_finished_ = self;
  for (Cta* cta : cluster->ctas) {
    if (cta->rank == 0) free_slots_.push_back(cta->slot / shape.cluster);
    counters->finish_cta(*cta);
    for (Thread* thread : cta->threads) {
      if (thread != self) pool_.push_back(thread);
    }
  }
  auto of_cluster = [&](const std::unique_ptr<Cta>& cta) { return cta->cluster == cluster; };
  ctas.erase(std::remove_if(ctas.begin(), ctas.end(), of_cluster), ctas.end());
  clusters_.erase(std::find_if(clusters_.begin(), clusters_.end(), [&](const auto& c) { return c.get() == cluster; }));
}

bool Machine::launch(const KernelInfo& kernel, const LaunchShape& launch_shape, const void* params,
                     const Config& launch_config) {
  machine = this;
  self = nullptr;
  kernel_ = &kernel;
  params_ = params;
  shape = launch_shape;
  config = launch_config;
  rng_ = config.seed * 0x9E3779B97F4A7C15ull | 1;
  fault = Fault::none;
  report.clear();
  for (AccessedSet* accessed : {&updated, &written, &read, &read_as_constant}) accessed->clear();
  events = events_at_last_spin_ = 0;
  idle_spins_ = 0;
  favoured_cta_ = burst_left_ = 0;
  live_threads_ = 0;

  uint32_t total = shape.grid.x * shape.grid.y * shape.grid.z;
  uint32_t wanted = std::max(1u, config.resident_ctas / shape.cluster);
  uint32_t resident = std::min<uint32_t>({wanted, total / shape.cluster, static_cast<uint32_t>(Memory::slots) / shape.cluster,
                                          RaceDetector::max_resident_threads / (shape.cluster * shape.threads)});
  order_.clear();
  for (uint32_t i = 0; i < total / shape.cluster; i++) order_.push_back(i);
  // Hardware guarantees no order of CTAs.
  if (config.schedule == Schedule::last_in) std::reverse(order_.begin(), order_.end());
  if (config.schedule == Schedule::random) {
    for (size_t i = order_.size(); i > 1; i--) std::swap(order_[i - 1], order_[random() % i]);
  }
  free_slots_.clear();
  for (uint32_t i = resident; i > 0; i--) free_slots_.push_back(i - 1);
  next_cluster_ = 0;

  race->start_launch(resident * shape.cluster * shape.threads);
  counters->start_launch(config.count_transactions);
  async->start_launch();
  {
    CrashGuard guard;
    start_ctas();
    run_next();
  }
  counters->end_launch();
  race->end_launch();
  async->end_launch();
  runnable_.clear();
  spinners_.clear();
  ctas.clear();
  clusters_.clear();
  pool_.clear();
  last_finished_ = nullptr;
  for (auto& thread : all_threads_) pool_.push_back(thread.get());
  machine = nullptr;
  self = nullptr;
  return fault == Fault::none;
}

}  // namespace emu
