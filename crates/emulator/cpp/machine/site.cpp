#include "site.h"

#include <link.h>

#include <deque>
#include <mutex>

namespace emu {

namespace {

/// The code of one library. The number of its first byte is `first`.
struct Module {
  uintptr_t base, begin, end;
  uint32_t first;
  std::string path;

  bool holds(uintptr_t address) const { return begin <= address && address < end; }
};

std::mutex modules_lock;
std::deque<Module> modules;  // never removed: libraries stay loaded

struct Search {
  uintptr_t address;
  Module found;
};

int look_into(dl_phdr_info* info, size_t, void* data) {
  auto& search = *static_cast<Search*>(data);
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr)& part = info->dlpi_phdr[i];
    if (part.p_type != PT_LOAD || !(part.p_flags & PF_X)) continue;
    uintptr_t begin = info->dlpi_addr + part.p_vaddr;
    Module module{info->dlpi_addr, begin, begin + part.p_memsz, 0, info->dlpi_name};
    if (!module.holds(search.address)) continue;
    search.found = module;
    return 1;
  }
  return 0;
}

const Module* module_of(uintptr_t address) {
  std::lock_guard<std::mutex> hold(modules_lock);
  for (const Module& module : modules) {
    if (module.holds(address)) return &module;
  }
  Search search{address, {}};
  if (!dl_iterate_phdr(look_into, &search)) return nullptr;
  search.found.first = 1;
  if (!modules.empty()) {
    const Module& last = modules.back();
    search.found.first = last.first + static_cast<uint32_t>(last.end - last.begin);
  }
  modules.push_back(search.found);
  return &modules.back();
}

}  // namespace

uint32_t site_number(const void* site) {
  // The module of the last access: nearly all accesses come from the same library.
  static thread_local const Module* latest = nullptr;
  auto address = reinterpret_cast<uintptr_t>(site);
  if (!latest || !latest->holds(address)) {
    const Module* module = site ? module_of(address) : nullptr;
    if (!module) return 0;
    latest = module;
  }
  return latest->first + static_cast<uint32_t>(address - latest->begin);
}

std::string site_library(uint32_t number, uint64_t& address) {
  std::lock_guard<std::mutex> hold(modules_lock);
  for (const Module& module : modules) {
    if (number < module.first || number - module.first >= module.end - module.begin) continue;
    address = module.begin - module.base + (number - module.first);
    return module.path;
  }
  return {};
}

}  // namespace emu
