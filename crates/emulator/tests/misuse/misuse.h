// Kernels that each do one thing that the emulator has to refuse.
//
// All get the same: in[0] and out[0] are 4096 words of global memory; maps[0] (with the 128-byte swizzle) and maps[1]
// see in[0] as 64 rows of 64 elements of 16 bits, of which a box has 8 rows; maps[1] is of three dimensions.
#pragma once

#include <abi.h>
#include <gpu/atomic.h>
#include <gpu/block.h>
#include <gpu/copy_async.h>
#include <gpu/grid.h>
#include <gpu/memory.h>
#include <gpu/shared.h>
#include <gpu/warp.h>

using namespace gpu;

#define MISUSE(NAME) GPU_KERNEL(misuse_##NAME, LoraTest, 256, 1)

GPU_DEVICE u32* words_in(const LoraTest& p) { return const_cast<u32*>(static_cast<const u32*>(p.in[0])); }
GPU_DEVICE u32* words_out(const LoraTest& p) { return static_cast<u32*>(p.out[0]); }
