// Tickets: numbers that CTAs draw from a counter in global memory. Whoever draws one knows that all lower ones were drawn, by
// CTAs that run.
//
// The counter holds the next number in its lower half and the launches before this one in its upper. A launch draws a
// number of tickets that every CTA knows, so the drawer of the last can set the counter up for the next launch: nothing is
// reset from outside, and a captured graph replays.
#pragma once

#include <gpu/atomic.h>

namespace tile {

using namespace gpu;

GPU_DEVICE u32 ticket_number(u64 ticket) { return u32(ticket); }

/// The launch's own number. Not zero in a fresh workspace, so that nothing there is taken for its work.
GPU_DEVICE u32 ticket_epoch(u64 ticket) { return u32(ticket >> 32) + 1; }

GPU_DEVICE u64 draw_ticket(u64* counter) { return fetch_add_relaxed(counter, u64(1)); }

/// To be called for every ticket by who drew it, once it is there: kept apart from the draw so that the ticket can be on
/// its way while its drawer works. `draws` tickets are drawn in a launch.
GPU_DEVICE void settle_ticket(u64* counter, u64 ticket, u32 draws) {
  if (ticket_number(ticket) == draws - 1) store_relaxed(counter, u64(ticket_epoch(ticket)) << 32);
}

}  // namespace tile
