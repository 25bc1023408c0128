// Runs CUDA source on a CPU: one fiber per thread of a block, real barriers, poisoned shared memory.
//
// Blocks run one after the other. Inside a block a warp runs as far as it can, until all its lanes wait at a block
// barrier or have ended; then the next warp. Blocks alternate between rising and falling warp order. This greedy order
// shows a missing __syncthreads, which a fair one would hide. Shared memory starts as NaN in every block.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define SDPL_EMULATOR
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
using std::max;
using std::min;

namespace emulator {

struct Index { int x = 0, y = 0, z = 0; };

struct Thread {
  ucontext_t context;
  jmp_buf resumed;  // where it goes on, once it has started
  std::vector<char> stack;
  Index index;
  bool started = false, ended = false, at_block_barrier = false;
  long block_barriers = 0, warp_barriers = 0;  // passed or waited at so far
};

inline std::vector<Thread> threads;
inline Thread* current = nullptr;
inline ucontext_t scheduler;
inline jmp_buf scheduler_resumed;
inline std::vector<float> shared, exchange[2];
inline Index block_index, block_size, grid_size;
inline std::function<void()> body;

inline float* shared_memory() { return shared.data(); }
inline int id() { return int(current - threads.data()); }

// Switching: swapcontext asks the kernel each time, so it only starts a thread; the address sanitizer needs it always.
#ifdef __SANITIZE_ADDRESS__
inline void yield() { swapcontext(&current->context, &scheduler); }
inline void resume(Thread& thread) { swapcontext(&scheduler, &thread.context); }
#else
inline void yield() {
  if (_setjmp(current->resumed) == 0) _longjmp(scheduler_resumed, 1);
}
__attribute__((noinline)) inline void resume(Thread& thread) {
  if (_setjmp(scheduler_resumed) != 0) return;
  if (thread.started) _longjmp(thread.resumed, 1);
  thread.started = true;
  setcontext(&thread.context);
}
#endif

inline void run_thread() {
  body();
  current->ended = true;
  yield();
}

// Waits until every thread of [first, last) has reached this barrier as often as the caller.
inline void wait(int first, int last, long Thread::*count) {
  const long mine = ++(current->*count);
  for (;;) {
    bool all = true;
    for (int i = first; i < last; i++) {
      if (threads[i].*count >= mine) continue;
      if (threads[i].ended) {
        std::fprintf(stderr, "thread %d ended before a barrier that thread %d waits at\n", i, id());
        std::exit(3);
      }
      all = false;
    }
    if (all) return;
    yield();
  }
}

inline void run_warp(int first, int last) {
  for (bool progress = true; progress;) {
    progress = false;
    for (int i = first; i < last; i++) {
      Thread& thread = threads[i];
      if (thread.ended) continue;
      current = &thread;
      resume(thread);
      if (!thread.ended && !thread.at_block_barrier) progress = true;
    }
  }
}

inline void run_block(int size, size_t shared_bytes, bool falling) {
  shared.assign(shared_bytes / sizeof(float), std::nanf(""));
  shared.shrink_to_fit();
  for (auto& values : exchange) values.assign(size, 0.f);
  threads.resize(size);
  for (int i = 0; i < size; i++) {
    Thread& thread = threads[i];
    thread.stack.resize(256 << 10);
    thread.index = {i, 0, 0};
    thread.started = thread.ended = thread.at_block_barrier = false;
    thread.block_barriers = thread.warp_barriers = 0;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, run_thread, 0);
  }
  const int warps = (size + 31) / 32;
  for (bool alive = true; alive;) {
    alive = false;
    for (int i = 0; i < warps; i++) {
      const int warp = falling ? warps - 1 - i : i;
      run_warp(warp * 32, min(size, warp * 32 + 32));
    }
    for (const Thread& thread : threads) alive |= !thread.ended;
  }
}

inline void launch(Index grid, int block, size_t shared_bytes, std::function<void()> kernel) {
  grid_size = grid;
  block_size = {block, 1, 1};
  body = std::move(kernel);
  for (int z = 0; z < grid.z; z++)
    for (int y = 0; y < grid.y; y++)
      for (int x = 0; x < grid.x; x++) {
        block_index = {x, y, z};
        run_block(block, shared_bytes, (x + y + z) % 2 == 1);
      }
}

inline float half_to_float(unsigned short bits) {
  _Float16 value;
  std::memcpy(&value, &bits, sizeof value);
  return float(value);
}

// The device's tanh.approx.f32 is off by up to about 2^-11 of the value. With SDPL_TANH_ERROR the emulator is off by
// exactly that much, up or down as the argument's bits decide, so that tolerances are tried against the worst case.
inline float approximate_tanh(float x) {
#ifdef SDPL_TANH_ERROR
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const bool up = ((bits * 2654435761u) >> 16) & 1;
  return std::tanh(x) * (up ? 1.f + 1.f / 2048 : 1.f - 1.f / 2048);
#else
  return std::tanh(x);
#endif
}

}  // namespace emulator

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)

inline void __syncthreads() {
  emulator::current->at_block_barrier = true;
  emulator::wait(0, int(emulator::threads.size()), &emulator::Thread::block_barriers);
  emulator::current->at_block_barrier = false;
}

inline void __syncwarp() {
  const int first = emulator::id() / 32 * 32;
  emulator::wait(first, min(first + 32, int(emulator::threads.size())), &emulator::Thread::warp_barriers);
}

inline float __shfl_xor_sync(unsigned, float value, int offset) {
  const int i = emulator::id();
  // two buffers in turn: nobody writes into this one again before everybody has passed the next barrier
  std::vector<float>& values = emulator::exchange[emulator::current->warp_barriers % 2];
  values[i] = value;
  __syncwarp();
  return values[i ^ offset];
}

inline float __saturatef(float value) { return std::fmin(std::fmax(value, 0.f), 1.f); }

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
