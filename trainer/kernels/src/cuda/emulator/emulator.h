// What a CUDA kernel needs, on a host: the tests compile the sources of src/cuda with it.
//
// A block's threads are coroutines that change places at barriers only, in an order that the caller
// picks: forwards, backwards or shuffled. A missing barrier shows as a wrong number in one of them.
// Shared memory begins as NaN. The two warp instructions follow the fragment layouts of the PTX
// manual (mma.m16n8k16, ldmatrix).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t i8;
typedef uint8_t u8;
typedef int32_t i32;

#define __device__
#define __global__
#define __launch_bounds__(threads)
#define __shared__ static __attribute__((section("shared_memory")))

using std::max;
using std::min;

extern char __start_shared_memory[] __attribute__((weak, visibility("hidden")));
extern char __stop_shared_memory[] __attribute__((weak, visibility("hidden")));

struct Place {
    unsigned x = 0, y = 0, z = 0;
};
static Place threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    bool done = false;
    bool at_block_barrier = false;
    u64 round = 0; // of the barrier it waits at
};
struct Barrier {
    unsigned arrived = 0, size = 0;
    u64 round = 0;
};
static std::vector<Thread> threads;
static ucontext_t scheduler;
static unsigned current = 0;
static Barrier block;
static std::vector<Barrier> warps;
static float lane_values[1024];
static u32 lane_words[1024][8];
static const void *lane_pointers[1024];
static unsigned lane_steps[1024];
static void (*body)(void *);
static void *body_arguments;

inline void wait(Barrier &barrier) {
    u64 round = barrier.round;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        barrier.round++;
        return;
    }
    while (barrier.round == round) {
        threads[current].at_block_barrier = &barrier == &block;
        threads[current].round = round;
        swapcontext(&threads[current].context, &scheduler);
    }
    threads[current].at_block_barrier = false;
}

inline Barrier &warp() { return warps[current / 32]; }
inline unsigned first_lane() { return current / 32 * 32; }

inline void run_thread() {
    body(body_arguments);
    threads[current].done = true;
    swapcontext(&threads[current].context, &scheduler);
}

// Runs one block; order: 0 forwards, 1 backwards, others shuffled by it. false where threads hang.
//
// A warp runs until it ends or waits for the others: as far ahead of them as a GPU could let it.
inline bool run_block(unsigned count, unsigned order) {
    if (__start_shared_memory) {
        std::memset(__start_shared_memory, 0xff,
                    (size_t)(__stop_shared_memory - __start_shared_memory));
    }
    threads.resize(std::max<size_t>(threads.size(), count));
    block = Barrier{0, count, 0};
    warps.assign((count + 31) / 32, Barrier{});
    std::vector<unsigned> turn(warps.size());
    for (unsigned i = 0; i < count; i++) {
        warps[i / 32].size++;
        Thread &thread = threads[i];
        thread.stack.resize(256 << 10);
        thread.done = thread.at_block_barrier = false;
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, run_thread, 0);
    }
    u64 random = order * 2654435761u + 1;
    for (unsigned i = 0; i < turn.size(); i++) {
        turn[i] = order == 1 ? (unsigned)turn.size() - 1 - i : i;
    }
    for (size_t i = turn.size(); order > 1 && i > 1; i--) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        std::swap(turn[i - 1], turn[(random >> 33) % i]);
    }
    unsigned left = count;
    bool moved = true;
    while (left > 0 && moved) {
        moved = false;
        for (unsigned w : turn) {
            bool goes_on = true;
            for (unsigned tries = 0; goes_on && tries < 100000000u; tries++) {
                goes_on = false;
                for (unsigned lane = 0; lane < 32 && w * 32 + lane < count; lane++) {
                    unsigned i = w * 32 + (order == 1 ? 31 - lane : lane);
                    bool waits = threads[i].at_block_barrier && block.round == threads[i].round;
                    if (!threads[i].done && !waits) {
                        current = i;
                        threadIdx.x = i;
                        swapcontext(&scheduler, &threads[i].context);
                        left -= threads[i].done;
                        goes_on = moved = true;
                    }
                }
            }
        }
    }
    return left == 0;
}
} // namespace emulator

inline void __syncthreads() {
    unsigned me = emulator::current;
    emulator::wait(emulator::block);
    threadIdx.x = me;
}

inline void sync_warp() {
    unsigned me = emulator::current;
    emulator::wait(emulator::warp());
    threadIdx.x = me;
}

inline float __shfl_xor_sync(u32, float value, int mask) {
    unsigned me = emulator::current;
    emulator::lane_values[me] = value;
    sync_warp();
    float other = emulator::lane_values[me ^ (unsigned)mask];
    sync_warp();
    return other;
}

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __expf(float x) { return std::exp(x); }

struct Sixteen;

inline u16 halfword(const void *row, int element) {
    u16 value;
    std::memcpy(&value, (const char *)row + 2 * element, 2);
    return value;
}

inline void load_matrices_as(u32 *to, const void *from, bool turned) {
    unsigned me = emulator::current, lane = me % 32;
    emulator::lane_pointers[me] = from;
    sync_warp();
    const void **rows = emulator::lane_pointers + emulator::first_lane();
    for (int i = 0; i < 4; i++) {
        u32 pair[2];
        for (int j = 0; j < 2; j++) {
            int fast = (int)(lane % 4) * 2 + j, slow = (int)lane / 4;
            int row = turned ? fast : slow, element = turned ? slow : fast;
            pair[j] = halfword(rows[i * 8 + row], element);
        }
        to[i] = pair[0] | pair[1] << 16;
    }
    sync_warp();
}

inline void load_matrices(u32 *to, const Sixteen *from) { load_matrices_as(to, from, false); }
inline void load_matrices_turned(u32 *to, const Sixteen *from) { load_matrices_as(to, from, true); }

inline float bf16_half(u32 word, int high) {
    u32 bits = high ? word & 0xffff0000u : word << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline void multiply(float *sum, const u32 *a, const u32 *b) {
    unsigned me = emulator::current, lane = me % 32;
    for (int i = 0; i < 4; i++) {
        emulator::lane_words[me][i] = a[i];
    }
    emulator::lane_words[me][4] = b[0];
    emulator::lane_words[me][5] = b[1];
    sync_warp();
    u32(*words)[8] = emulator::lane_words + emulator::first_lane();
    for (int i = 0; i < 4; i++) {
        int row = (int)lane / 4 + i / 2 * 8, column = (int)lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            // Element (row, k) of a: register 2 * (k >= 8) + (row >= 8) of lane row % 8 * 4 + k % 8 / 2.
            u32 left = words[row % 8 * 4 + k % 8 / 2][(k >= 8) * 2 + (row >= 8)];
            // Element (k, column) of b: register k >= 8 of lane column * 4 + k % 8 / 2.
            u32 right = words[column * 4 + k % 8 / 2][4 + (k >= 8)];
            sum[i] += bf16_half(left, k % 2) * bf16_half(right, k % 2);
        }
    }
    sync_warp();
}

// A kernel's inline functions keep shared memory of their own; in one section it must be static.
#define inline static
