// Tickets: numbers that CTAs take from a counter in global memory. When a CTA takes a ticket, all lower tickets have been
// taken, by CTAs that are running or have ended.
//
// The counter holds the next ticket in its lower half and the epoch of the launch before in its upper half. Every CTA can
// compute the number of tickets of a launch, so the CTA that takes the last one sets the counter up for the next launch:
// nothing is reset from outside, and a captured graph can be replayed.
//
// Epochs count launches: 1, 2, ... 2^32 - 1, and then 2, 3, ... again. 0 is left out because a flag that no launch has set is
// 0, and 1 because even and odd epochs take turns (optim/adamw.h).
#pragma once

#include <gpu/atomic.h>

namespace tile {

using namespace gpu;

GPU_DEVICE u32 ticket_number(u64 ticket) { return u32(ticket); }

/// The launch's epoch. It is never 0, so nothing in a zeroed workspace looks like the work of a launch.
GPU_DEVICE u32 ticket_epoch(u64 ticket) { return u32(ticket >> 32) + 1; }

GPU_DEVICE u64 draw_ticket(u64* counter) { return fetch_add_relaxed(counter, u64(1)); }

/// Must be called for every ticket by the thread that took it. It is separate from draw_ticket, so that the ticket can be in
/// flight while the thread works. A launch takes `draws` tickets.
GPU_DEVICE void settle_ticket(u64* counter, u64 ticket, u32 draws) {
  const u32 epoch = ticket_epoch(ticket);
  if (ticket_number(ticket) == draws - 1) store_relaxed(counter, u64(epoch == ~0u ? 1 : epoch) << 32);
}

}  // namespace tile
