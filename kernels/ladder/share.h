// The shrink of steps 3 and 4 of the ladder: the CTAs of a launch share out the rows of A among them, and receive T from
// each other through global memory.
//
// A CTA cannot know which CTAs run beside it: the GPU starts them in any order, and those that do not fit wait until others
// have ended. So no row belongs to a CTA from the start. CTAs draw tickets (tile/ticket.h), of which each stands for 8 rows
// of A, one a warp. A CTA draws and computes until it gets a ticket beyond the last row, and only then waits for T. At that
// moment every row has been drawn by a CTA that is running or has ended, and that stores its rows before it waits for
// anything. So no CTA waits for one that has not started, and the launch ends even if there is room for one CTA only.
//
// A ticket has a flag. The CTA that has stored the ticket's part of T sets the flag to the launch's epoch, with release; a
// CTA that reads the epoch there, with acquire, sees that part of T. Nothing is cleared between launches, because the next
// one waits for another epoch. The CTA that draws the last ticket sets the counter up for the next launch.
#pragma once

#include <gpu/atomic.h>
#include <ladder/dot.h>
#include <tile/ticket.h>

namespace ladder {

GPU_DEVICE u32 tickets(const LoraLadder& p) { return (p.rank + warps - 1) / warps; }

/// Computes and publishes parts of s·T until no ticket is left. `word` is in shared memory. Returns the launch's epoch. All
/// threads of the CTA call it.
GPU_DEVICE u32 compute_share(const LoraLadder& p, const float* x, u64* word) {
  // Every CTA draws one ticket beyond the last row.
  const u32 draws = tickets(p) + gridDim.x;
  while (true) {
    if (threadIdx.x == 0) {
      *word = tile::draw_ticket(p.ticket);
      tile::settle_ticket(p.ticket, *word, draws);
    }
    sync_block();
    const u32 ticket = tile::ticket_number(*word), epoch = tile::ticket_epoch(*word);
    if (ticket >= tickets(p)) return epoch;
    const u32 j = ticket * warps + warp_id();
    if (j < p.rank) {
      float sum[max_tokens] = {};
      multiply(sum, p.a + u64(j) * p.a_stride, x, x_row(p), p.depth, p.tokens);
      add_lanes(sum, p.tokens, [&](u32 m, float total) { store(p.t + m * p.rank + j, p.scale * total); });
    }
    // All warps have stored their rows, and have read the word that thread 0 overwrites next.
    sync_block();
    if (threadIdx.x == 0) store_release(p.flags + ticket, epoch);
  }
}

/// Waits for all of s·T and copies it to shared memory. All threads of the CTA call it.
GPU_DEVICE void receive(const LoraLadder& p, float* t, u32 epoch) {
  for (u32 i = threadIdx.x; i < tickets(p); i += threads) {
    while (load_acquire(p.flags + i) != epoch) back_off();
  }
  sync_block();
  for (u32 i = threadIdx.x; i < p.tokens * p.rank; i += threads) t[i] = load(p.t + i);
  sync_block();
}

}  // namespace ladder
