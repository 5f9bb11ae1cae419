// TMA: copies of boxes between global and shared memory by the copy engine. And the proxy fences.
#pragma once

#include <cstdint>

namespace emu {

struct Thread;

void tma_prefetch(const void* map);
/// Copies the box at `at` (`rank` coordinates) to the CTAs whose bits are set in `ctas`; 0 means the calling CTA.
/// `constant`: the preceding launch does not write the tensor.
void tma_load(uint32_t to, const void* map, uint32_t barrier, const int32_t* at, uint32_t rank, uint32_t ctas,
              const char* name, bool constant = false);
void tma_store(const void* map, uint32_t from, const int32_t* at, uint32_t rank, const char* name);
void bulk_commit();
/// Waits until at most `groups` groups are incomplete or, with `read_only`, still have to read shared memory.
void bulk_wait(uint32_t groups, bool read_only);
void fence_proxy_async(bool shared);

void check_stores_at_exit(const Thread& thread);

}  // namespace emu
