#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#include "sanitizer.h"

// Saves the callee-saved registers on the current stack, switches to the other stack and restores its registers.
#if defined(__x86_64__)
asm(R"(
.text
.globl fused_lora_emulator_switch
.hidden fused_lora_emulator_switch
.type fused_lora_emulator_switch,@function
fused_lora_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fused_lora_emulator_switch,.-fused_lora_emulator_switch
)");
constexpr int saved_registers = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl fused_lora_emulator_switch
.hidden fused_lora_emulator_switch
.type fused_lora_emulator_switch,%function
fused_lora_emulator_switch:
  sub sp, sp, #160
  stp d8, d9, [sp, #0]
  stp d10, d11, [sp, #16]
  stp d12, d13, [sp, #32]
  stp d14, d15, [sp, #48]
  stp x19, x20, [sp, #64]
  stp x21, x22, [sp, #80]
  stp x23, x24, [sp, #96]
  stp x25, x26, [sp, #112]
  stp x27, x28, [sp, #128]
  stp x29, x30, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp d8, d9, [sp, #0]
  ldp d10, d11, [sp, #16]
  ldp d12, d13, [sp, #32]
  ldp d14, d15, [sp, #48]
  ldp x19, x20, [sp, #64]
  ldp x21, x22, [sp, #80]
  ldp x23, x24, [sp, #96]
  ldp x25, x26, [sp, #112]
  ldp x27, x28, [sp, #128]
  ldp x29, x30, [sp, #144]
  add sp, sp, #160
  ret
.size fused_lora_emulator_switch,.-fused_lora_emulator_switch
)");
constexpr int saved_registers = 19;
#else
#error "the emulator switches stacks on x86-64 and AArch64 only"
#endif

extern "C" void fused_lora_emulator_switch(void** save, void* load);

namespace emu {

namespace {

// Sanitizers put red zones around every local variable.
#if EMU_ADDRESS_SANITIZER
constexpr size_t stack_bytes = 256 << 10;
#else
constexpr size_t stack_bytes = 64 << 10;
#endif
constexpr size_t guard_bytes = 4096;

// The fiber that the last switch suspended. AddressSanitizer reports the bounds of its stack to the fiber that runs next.
thread_local Fiber* suspended = nullptr;

}  // namespace

Fiber::~Fiber() {
  if (stack_) munmap(stack_ - guard_bytes, stack_bytes + guard_bytes);
}

void Fiber::reset(void (*entry)()) {
  if (!stack_) {
    void* memory = mmap(nullptr, stack_bytes + guard_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) abort();
    mprotect(memory, guard_bytes, PROT_NONE);
    stack_ = static_cast<char*>(memory) + guard_bytes;
    bottom_ = stack_;
    size_ = stack_bytes;
  }
  unpoison(stack_, stack_bytes);
  void** top = reinterpret_cast<void**>(stack_ + stack_bytes);
#if defined(__x86_64__)
  *--top = nullptr;  // keeps the stack aligned as if `entry` had been called
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < saved_registers; i++) *--top = nullptr;
#else
  top -= 20;
  for (int i = 0; i < 20; i++) top[i] = nullptr;
  top[saved_registers] = reinterpret_cast<void*>(entry);
#endif
  stack_pointer_ = top;
  fake_stack_ = nullptr;
}

void Fiber::switch_to(Fiber& from, Fiber& to, bool final) {
  suspended = &from;
#if EMU_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(final ? nullptr : &from.fake_stack_, to.bottom_, to.size_);
#endif
  (void)final;
  fused_lora_emulator_switch(&from.stack_pointer_, to.stack_pointer_);
#if EMU_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(from.fake_stack_, &suspended->bottom_, &suspended->size_);
#endif
}

void Fiber::started() {
#if EMU_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(nullptr, &suspended->bottom_, &suspended->size_);
#endif
}

}  // namespace emu
