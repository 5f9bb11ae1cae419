// Kernels that each break one rule, for which the emulator must end them.
//
// All get the same parameters: in[0] and out[0] are 4096 words of global memory; maps[0] (with the 128-byte swizzle) and
// maps[1] are tensor maps of in[0] as 64 rows of 64 elements of 16 bits, with boxes of 8 rows; that of maps[1] has three
// dimensions.
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
