#include "counters.h"

#include <sys/mman.h>

#include <algorithm>

#include "machine.h"

namespace emu {

namespace {

constexpr size_t counted_granule = 4;
constexpr size_t map_bytes = Memory::global_bytes / counted_granule * sizeof(uint16_t);
constexpr uintptr_t sector_bytes = 32;
// A lane that left a loop early never comes back to its accesses. If more groups than this are open, the oldest is counted
// without the missing lanes.
constexpr size_t max_open = 4096;

}  // namespace

CounterState::CounterState(Memory& memory)
    : memory_(memory),
      loaded_(static_cast<uint16_t*>(reserve(map_bytes))),
      stored_(static_cast<uint16_t*>(reserve(map_bytes))) {}

CounterState::~CounterState() {
  unreserve(loaded_, map_bytes);
  unreserve(stored_, map_bytes);
}

void CounterState::start_launch(bool transactions) {
  totals = {};
  transactions_ = transactions;
  warps_.clear();
  if (++launch_ == 0) {
    madvise(loaded_, map_bytes, MADV_DONTNEED);
    madvise(stored_, map_bytes, MADV_DONTNEED);
    launch_ = 1;
  }
}

void CounterState::end_launch() { warps_.clear(); }

void CounterState::finish_thread(Thread& thread) {
  auto found = warps_.find(thread.warp);
  if (found == warps_.end()) return;
  uint32_t live = thread.warp->live & ~(1u << thread.lane);
  for (auto& [address, site] : found->second) flush(site, live == 0, live);
}

void CounterState::finish_cta(Cta& cta) {
  for (Warp& warp : cta.warps) {
    auto found = warps_.find(&warp);
    if (found == warps_.end()) continue;
    for (auto& [address, site] : found->second) flush(site, true, 0);
    warps_.erase(found);
  }
}

void CounterState::count_distinct(uint16_t* seen, const void* p, uint32_t bytes, uint64_t& total) {
  const size_t first = memory_.offset(p) / counted_granule, last = (memory_.offset(p) + bytes - 1) / counted_granule;
  for (size_t at = first; at <= last; at++) {
    if (seen[at] != launch_) {
      seen[at] = launch_;
      total += counted_granule;
    }
  }
}

void CounterState::global(Access kind, const void* p, uint32_t bytes, const void* site) {
  switch (kind) {
    case Access::once:
      totals.once_bytes += bytes;
      totals.once_instructions++;
      [[fallthrough]];
    case Access::load:
      totals.load_bytes += bytes;
      totals.load_instructions++;
      count_distinct(loaded_, p, bytes, totals.distinct_load_bytes);
      break;
    case Access::store:
      totals.store_bytes += bytes;
      totals.store_instructions++;
      count_distinct(stored_, p, bytes, totals.distinct_store_bytes);
      break;
    case Access::atomic:
      totals.atomic_bytes += bytes;
      totals.atomic_instructions++;
      return;
  }
  if (transactions_) gather(false, kind, p, bytes, site);
}

void CounterState::shared(const void* p, uint32_t bytes, bool, const void* site) {
  if (transactions_) gather(true, Access::load, p, bytes, site);
}

void CounterState::engine(const void* p, uint32_t bytes, bool write) {
  totals.async_bytes += bytes;
  count_distinct(write ? stored_ : loaded_, p, bytes, write ? totals.distinct_store_bytes : totals.distinct_load_bytes);
}

void CounterState::gather(bool is_shared, Access kind, const void* p, uint32_t bytes, const void* address) {
  Site& site = warps_[self->warp][address];
  site.is_shared = is_shared;
  site.kind = kind;
  uint64_t visit = site.visits[self->lane]++;
  if (visit < site.first) return;  // the group of this visit has been counted already, without this lane
  while (site.first + site.open.size() <= visit) site.open.emplace_back();
  WarpAccess& group = site.open[visit - site.first];
  group.lanes |= 1u << self->lane;
  group.bytes = std::max(group.bytes, bytes);
  group.address[self->lane] = p;
  if (group.lanes == self->warp->live || site.open.size() > max_open) flush(site, false, self->warp->live);
}

void CounterState::flush(Site& site, bool all, uint32_t live) {
  while (!site.open.empty() &&
         (all || (live & ~site.open.front().lanes) == 0 || site.open.size() > max_open)) {
    count(site, site.open.front());
    site.open.pop_front();
    site.first++;
  }
}

void CounterState::count_wavefronts(std::vector<uintptr_t>& words) {
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  uint32_t in_bank[32] = {}, worst = 0;
  for (uintptr_t word : words) worst = std::max(worst, ++in_bank[word % 32]);
  totals.shared_wavefronts += worst;
  totals.shared_conflicts += worst > 1 ? worst - 1 : 0;
}

void CounterState::matrix_rows(char* const* rows, uint32_t n) {
  if (!transactions_) return;
  std::vector<uintptr_t> words;
  for (uint32_t i = 0; i < n; i++) {
    for (uintptr_t word = 0; word < 4; word++) words.push_back(reinterpret_cast<uintptr_t>(rows[i]) / 4 + word);
    if (i % 8 == 7) {
      count_wavefronts(words);
      words.clear();
    }
  }
}

void CounterState::count(const Site& site, const WarpAccess& access) {
  if (site.is_shared) {
    // A wavefront serves 128 bytes: 32 lanes of 4 bytes, 16 of 8 or 8 of 16. In each wavefront a bank delivers one word.
    uint32_t per_wavefront = std::min(32u, 128 / std::max(4u, access.bytes));
    for (uint32_t first = 0; first < 32; first += per_wavefront) {
      std::vector<uintptr_t> words;
      for (uint32_t lane = first; lane < first + per_wavefront; lane++) {
        if (!access.address[lane]) continue;
        uintptr_t at = reinterpret_cast<uintptr_t>(access.address[lane]);
        for (uintptr_t word = at / 4; word <= (at + access.bytes - 1) / 4; word++) words.push_back(word);
      }
      count_wavefronts(words);
    }
    return;
  }
  std::vector<uintptr_t> sectors, starts;
  for (const void* p : access.address) {
    if (!p) continue;
    uintptr_t at = reinterpret_cast<uintptr_t>(p);
    starts.push_back(at);
    for (uintptr_t s = at / sector_bytes; s <= (at + access.bytes - 1) / sector_bytes; s++) sectors.push_back(s);
  }
  auto distinct_count = [](std::vector<uintptr_t>& v) {
    std::sort(v.begin(), v.end());
    return static_cast<uint64_t>(std::unique(v.begin(), v.end()) - v.begin());
  };
  uint64_t first_access = distinct_count(sectors);
  uint64_t ideal = (distinct_count(starts) * access.bytes + sector_bytes - 1) / sector_bytes;
  if (site.kind == Access::store) {
    totals.store_sectors += first_access;
    totals.store_ideal_sectors += ideal;
    return;
  }
  totals.load_sectors += first_access;
  totals.load_ideal_sectors += ideal;
  if (site.kind == Access::once) {
    totals.once_sectors += first_access;
    totals.once_ideal_sectors += ideal;
  }
}

}  // namespace emu
